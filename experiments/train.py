"""Trains a siamese encoder on pairs, evaluates it on held-out data and draws what it learned.

python -m experiments.train                          # digits, under a minute
python -m experiments.train --dataset fashion_mnist  # under ten minutes on two cores
python -m experiments.train --data photos            # a folder of class folders of images
python -m experiments.train --resume digits-convnet-1
"""

import dataclasses
import os
import time
from pathlib import Path
from typing import Any, Literal

from contrastive_jax import cli, load, train
from contrastive_jax.data import Dataset
from contrastive_jax.train import folder
from contrastive_jax.train.devices import Strategy
from contrastive_jax.train.labelled import check_labels
from contrastive_jax.train.resumption import check_steps, microbatches_on
from experiments import command, option_checks, options

# Options that may differ when a run is resumed.
FREE = options.FREE | {"keep", "check_values", "figures", "steps_per_call", "given"}
# Options that may be given anew, and change how the run goes on.
CHANGEABLE = ("steps", "learning_rate")


@dataclasses.dataclass(frozen=True)
class Config(options.Runs, options.Batches, options.Training, options.Data):
    """Options of a run."""

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Type of the computation; auto is bfloat16 on accelerators and float32 on a CPU."""
    loss_learning_rate: float | None = None
    """Learning rate of the parameters of a loss, its proxies or boundaries; 0.01 by default."""
    memory: int = 0
    """Embeddings of earlier batches that a batch is compared with too (XBM); not with pairs or
    proxies."""
    max_age: int | None = None
    """Steps after which the memory ignores an embedding; 1,000 by default."""
    margin: float | None = None
    """Distance beyond which a negative pair costs nothing, 1.2 by default; on the unit sphere
    below 2. Of other losses that have a margin, this."""
    microbatches: int | None = None
    """Parts in which a device encodes its images, to bound the memory of activations; by default 1,
    and on a CPU parts of 32 pairs but for the MLP."""
    steps: int | None = None
    """Training steps; by default 1,500 on digits, 3,000 on mnist, 20,000 on other data sets by
    name, and 2,000 on data of your own."""
    warmup: float = 0.02
    """Share of the steps over which the learning rate grows."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    seed: int = 0
    """Seed of parameters and pairs; the same seed gives the same numbers."""
    init_from: Path | None = None
    """Folder of a run whose encoder this one starts from."""

    parallel: Strategy = "shard_map"
    """The way in which a step runs over devices; the numbers are the same."""
    devices: int | None = None
    """Number of devices; all by default."""
    steps_per_call: int | None = None
    """Steps of one compiled call; 1 on a CPU and log_every on accelerators by default."""
    data_on: Literal["device", "host"] = "device"
    """The place of the images: on the device, or on the host (streamed) if they do not fit."""
    check_values: bool = False
    """Check labels, margin and embeddings inside the compiled step; slower."""

    log_every: int = 100
    """Steps between two updates of the progress bar and of the metrics on disk."""
    validate_every: int = 500
    """Steps between two validations, each with a checkpoint; a multiple of log_every."""
    keep: int = 2
    """Checkpoints to keep besides the best by validation."""
    figures: bool = True
    """Evaluate on test and draw figures after training; `experiments.evaluate` does it later."""


def main(config: Config) -> Path:
    """Runs an experiment and returns its folder."""
    began = time.perf_counter()
    if config.figures:
        from contrastive_jax import run_report  # without matplotlib this fails before the training
    if "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        # Virtual devices that wait for each other hold threads of XLA's pool, one to a core by
        # default: more devices than cores would wait for ever. JAX reads this when it starts.
        os.environ.setdefault("PJRT_NPROC", "64")
    given = cli.as_saved(config)
    config = option_checks.checked_training(config)
    option_checks.warn_of_reach([config])
    devices = options.devices_of(config)
    begun: dict[str, Any] = {}
    free = {*FREE}
    if config.resume:
        config, begun = as_begun(config, len(devices))
        free |= _changed(config)
    options.settled(config, devices)  # what does not depend on the data, before it is read
    weights = None if config.init_from is None else load(config.init_from).weights
    data = options.load_data(config)
    config = option_checks.for_data(config, data)
    settled = options.settled(config, devices)
    with command.naming_options(settled):
        arguments = options.training_of(config, settled, data)
        if config.figures and isinstance(data, Dataset):
            check_labels(arguments["objective"], data, ["test"])
        run = train.fit(
            **arguments,
            weights=weights,
            devices=devices,
            strategy=config.parallel,
            steps_per_call=config.steps_per_call,
            data_on=config.data_on,
            check_values=config.check_values,
            log_every=config.log_every,
            validate_every=config.validate_every,
            keep=config.keep,
            runs=config.runs,
            name=config.resume or config.name,
            default_name=f"{options.data_name(config)}-{config.encoder}",
            resume=config.resume is not None,
            overwrite=config.overwrite,
            config=settled | begun | {"given": given},
            free=tuple(free),
        )
    assert run.folder is not None
    if config.figures:
        print("evaluating on test and drawing figures", flush=True)
        print(run_report.write_report(run, data, labels=config.labels))
    print(f"{run.folder} is complete after {time.perf_counter() - began:.0f} s")
    return run.folder


def _changed(config: Config) -> set[str]:
    """Returns the options that a resumed run is given anew, and says what they change."""
    where = config.runs / str(config.resume)
    before = folder.read_config(where)
    if config.steps is not None:
        with command.naming_options(vars(config)):
            check_steps(where, config.steps)
    changed = {
        name
        for name in CHANGEABLE
        if getattr(config, name) not in (None, before.get(name)) and name in before
    }
    for name in changed:
        print(
            f"{where} was begun with --{name} {before[name]} and goes on with "
            f"{getattr(config, name)}: the learning rate follows the new schedule from here on"
        )
    return changed


def as_begun(config: Config, devices: int) -> tuple[Config, dict[str, Any]]:
    """Spreads the batch of a resumed run so that its numbers stay the same on other devices.

    Args:
      config: options from `option_checks.checked_training`.
      devices: the number of devices that there are now.

    Returns:
      The options to go on with, and the options of the run that may differ from them, none where
      the number of devices is the same.
    """
    where = config.runs / str(config.resume)
    before = folder.read_config(where)
    begun = {key: before.get(key) for key in ("devices", "microbatches")}
    # A run without them is not one of this program, which the comparison of all options will say.
    if begun["devices"] == devices or None in begun.values():
        return config, {}
    # Given pairs, of which a run has `balanced`, are compared by all devices at once.
    drawn = config.objective == "pairs" and before.get("balanced") is None
    microbatches = microbatches_on(where, devices, config.microbatches, swaps=drawn)
    print(
        f"{where} was begun with --devices {begun['devices']} --microbatches "
        f"{begun['microbatches']} and goes on with --devices {devices} --microbatches "
        f"{microbatches}, which gives the same numbers"
    )
    if drawn and config.group is None:
        config = dataclasses.replace(config, group=before.get("group"))
    return dataclasses.replace(config, microbatches=microbatches), begun


if __name__ == "__main__":
    cli.run(main, lambda: cli.parse(Config, "experiments.train", str(__doc__)))
