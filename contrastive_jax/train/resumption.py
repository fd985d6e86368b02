"""Runs that go on on other devices or with more steps, and whether their numbers stay the same."""

from pathlib import Path

from contrastive_jax.train import checkpoints, folder


def check_steps(where: Path, steps: int) -> None:
    """Checks that a run has not taken more steps than it is to take.

    Args:
      where: the folder of the run.
      steps: to take in all.

    Raises:
      ValueError: if it has.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train.resumption import check_steps
      >>> check_steps(Path("runs/none-of-this-name"), steps=100)
    """
    if (taken := checkpoints.steps_taken(where / "checkpoints")) > steps:
        raise ValueError(
            f"{where} has taken {taken:,} steps already: steps must be at least {taken}, got "
            f"{steps:,}; leave resume out to begin a new run"
        )


def microbatches_on(
    where: Path, devices: int, microbatches: int | None = None, *, swaps: bool = True
) -> int:
    """Returns the microbatches with which a run goes on to the same bits on so many devices.

    The sum over N devices with one microbatch each, and that over N microbatches on one device, add
    up the same parts in the same order. Any other change of the number of devices adds them up in
    another order, which gives other last digits.

    Args:
      where: the folder of a run whose configuration has `devices` and `microbatches`.
      devices: the number of devices that there are now.
      microbatches: those asked for, None for those that fit.
      swaps: whether devices and microbatches may take each other's place, which they may where
        drawn pairs are compared and not whole batches.

    Raises:
      FileNotFoundError: if there is no such run.
      ValueError: if its configuration is damaged, or its numbers would not stay the same.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.train import folder
      >>> from contrastive_jax.train.resumption import microbatches_on
      >>> folder.write_config(Path(), {"devices": 4, "microbatches": 1})
      >>> microbatches_on(Path(), devices=1)
      4
    """
    before = folder.read_config(where)
    begun: dict[str, int] = {key: before[key] for key in ("devices", "microbatches")}
    swapped = {"devices": begun["microbatches"], "microbatches": begun["devices"]}
    ways = [begun]
    if swaps and 1 in swapped.values() and swapped != begun:
        ways.append(swapped)
    now = {"devices": devices, "microbatches": microbatches or swapped["microbatches"]}
    if devices == begun["devices"]:
        now["microbatches"] = microbatches or begun["microbatches"]
    if now not in ways:
        named = ["--devices {devices} --microbatches {microbatches}".format(**way) for way in ways]
        raise ValueError(
            f"{where} was begun with {named[0]}; on {devices} devices its sums would come out in "
            "another order, and its numbers differ in the last digits: resume it with "
            + ", or with ".join(named)
        )
    return now["microbatches"]
