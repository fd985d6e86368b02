# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Training on TPU or GPU
#
# For Colab, and for any other machine: the same cells run on a TPU, a GPU or a CPU, on one device
# or on several. In Colab choose the accelerator first (*Runtime → Change runtime type*).
#
# 1. find the accelerator
# 2. train over all devices, by `pmap` and by `shard_map`, in mixed precision
# 3. be interrupted, and go on from the last checkpoint on mounted storage
# 4. look at the map and at the table of results

# %% [markdown]
# The first cell installs the library where it is missing. The library has no release yet: fill in
# `package`, the path of its wheel or of a copy of its repository, or an address that pip installs
# from. Whatever is installed already keeps its version, JAX and Flax included.

# %%
# %matplotlib inline
import contextlib
import importlib.util
import os
import subprocess
import sys
import tempfile
from pathlib import Path

package = ""  # such as "/content/contrastive_jax-0.1.0.dev0-py3-none-any.whl" or "git+https://..."

if importlib.util.find_spec("contrastive_jax") is None:
    local = bool(package) and Path(package).exists()
    if not local and "://" not in package:
        raise FileNotFoundError(
            f"contrastive_jax is not installed, and package = {package!r} is neither a file nor an "
            "address: set package in this cell to the path of the library's wheel or of a copy of "
            "its repository, or to an address such as git+https://..."
        )
    address = Path(package).resolve().as_uri() if local else package
    wanted = f"contrastive_jax[train,plots] @ {address}"
    pip = [sys.executable, "-m", "pip"]
    # With the installed versions as constraints pip adds what is missing and replaces nothing.
    installed = subprocess.run(
        [*pip, "list", "--format=freeze"], capture_output=True, text=True, check=True
    )
    constraints = Path(tempfile.mkdtemp()) / "constraints.txt"
    constraints.write_text(installed.stdout)
    done = subprocess.run(
        [*pip, "install", "--constraint", constraints, wanted], capture_output=True, text=True
    )
    if done.returncode:
        raise RuntimeError(f"pip could not install {wanted}:\n{done.stdout}{done.stderr}")
    importlib.invalidate_caches()

os.environ.setdefault("PJRT_NPROC", "64")  # threads for CPU devices that wait for each other

import flax
import jax

import contrastive_jax

# Of use where there is no accelerator: two devices made of a CPU, whose sums race before jax 0.9.
with contextlib.suppress(RuntimeError):  # JAX keeps its devices once it is used
    jax.config.update("jax_num_cpu_devices", 2 if jax.__version_info__ >= (0, 9) else 1)
devices = jax.devices()
print(
    f"{jax.default_backend()}: {devices[0].device_kind} x {len(devices)}, "
    f"Python {sys.version.split()[0]}, "
    f"jax {jax.__version__}, flax {flax.__version__}, contrastive_jax {contrastive_jax.__version__}"
)

# %% [markdown]
# ## The accelerator
#
# The line above begins with the devices that JAX finds. Colab's TPU and GPU runtimes come with a
# JAX for theirs; on a machine of your own install
# [JAX for your accelerator](https://docs.jax.dev/en/latest/installation.html) beforehand.

# %%
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import Markdown

from contrastive_jax import data, distances, models, plots, train
from contrastive_jax.data import augment
from contrastive_jax.evaluation.retrieval import retrieval
from contrastive_jax.evaluation.summary import summarize
from contrastive_jax.train import checkpoints

platform = jax.default_backend()  # "tpu", "gpu" or "cpu"

# %% tags=["parameters"]
steps = 1000  # of training
checkpoint_every = 250  # steps, two times at least
pairs_per_step = 128  # over all devices together
name = "digits"  # or "fashion_mnist" or "mnist", whose IDX files lie in data_dir, or a TFDS name
data_dir = None
storage = None  # folder of checkpoints; Google Drive in Colab, `runs` elsewhere

# %% [markdown]
# ## Mounted storage
#
# What lies in Colab's own folders is gone when it disconnects. Checkpoints go to Google Drive.

# %%
if storage is None and "COLAB_RELEASE_TAG" in os.environ:  # in Colab
    from google.colab import drive

    drive.mount("/content/drive")
    storage = "/content/drive/MyDrive/contrastive_jax"
folder = Path(storage or "runs") / f"notebook-{name}"
folder

# %% [markdown]
# ## Data and encoder
#
# All images go to the devices once. Pairs are drawn there, by a key made of seed and step, so that
# the host never waits, and a run that goes on after an interruption draws what it would have drawn.

# %%
images = data.load(name, data_dir=data_dir)
index = data.index_by_class(images.train.classes)
print(
    f"{len(images.train.classes):,} images for training, of {images.train.images.shape[1:]} pixels"
)

# %% [markdown]
# *Mixed precision* computes in bfloat16, which accelerators multiply several times faster, and
# keeps parameters, embeddings and loss in float32. It is one argument. CPUs have no use for it.

# %%
dtype = jnp.float32 if platform == "cpu" else jnp.bfloat16


def encoder_in(dtype):
    return train.network(
        models.ConvNet(images.train.images.shape[1:], width=32, dtype=dtype, rngs=nnx.Rngs(0))
    )


encoder = encoder_in(dtype)
print(
    {str(leaf.dtype) for leaf in jax.tree.leaves(encoder.weights)},
    encoder.encode(encoder.weights, images.test.images[:2]).dtype,
)

# %% [markdown]
# What it costs: distances between the same images, encoded both ways, relative to each other.

# %%
few = images.test.images[:256]
exact, rounded = (
    encoder_in(kind).encode(encoder.weights, few) for kind in (jnp.float32, jnp.bfloat16)
)
between = jax.vmap(distances.euclidean)
off = between(exact[1:], exact[:-1]) / between(rounded[1:], rounded[:-1]) - 1
print(f"median {jnp.median(jnp.abs(off)):.1e}, largest {jnp.max(jnp.abs(off)):.1e}")

# %% [markdown]
# ## One step, any number of devices
#
# The step is written once, for the share of the pairs that a device has, with the mean over devices
# inside. Groups of pairs are compared across: of 16 pairs, 16 × 16 are compared for the cost of
# encoding 16. Images move by up to a pixel at random, as their numbers are few.

# %%
optimizer = train.make_optimizer(4e-3, steps, warmup_steps=steps // 50, weight_decay=0.5)
objective = train.objective("contrastive", on="pairs", group=16, margin=1.2)
pair_step = train.make_step(encoder, optimizer, objective, augment=augment.shift)
step = train.draws_pairs(pair_step, pairs_per_step)
# Accelerators take many steps in one call; a CPU is as quick step by step.
per_call = 1 if platform == "cpu" else checkpoint_every
hyperparameters = train.Hyperparameters(seed=0, loss=objective.hyperparameters)


def train_over_devices(strategy, state, start, stop):
    """Trains from step `start` to `stop` and yields the state and the records of each window."""
    call = train.repeated(step, per_call) if per_call > 1 else step
    placed = train.parallel(call, strategy)
    source = train.Source(images.train.images, images.train.classes, index)
    source, given = placed.replicate((source, hyperparameters))
    for state, records in train.windows(
        lambda state: placed.step(state, source, given),
        placed.replicate(state),
        start=start,
        steps=stop,
        window=checkpoint_every,
        steps_per_call=per_call,
        pairs_per_step=pairs_per_step,
    ):
        last = records[-1]
        print(
            f"{strategy} {last['step']:>5}: loss {last['loss']:.4f}, positive "
            f"{last['positive_distance']:.2f}, negative {last['negative_distance']:.2f} apart, "
            f"{last['pairs_per_second']:,.0f} pairs/s"
        )
        yield placed.fetch(state), records


# %% [markdown]
# `pmap` gives every device a copy of the state and a slice of a leading axis; `shard_map` works on
# global arrays on a mesh. Both run the same step:

# %%
start = train.init_state(encoder, optimizer)
ends, courses = {}, {}
for strategy in ("pmap", "shard_map"):
    courses[strategy] = []
    for state, records in train_over_devices(strategy, start, 0, steps):
        courses[strategy] += records
    ends[strategy] = state

# %% [markdown]
# and give the same numbers, to the rounding of a sum over devices:

# %%
losses_of = {name: np.array([r["loss"] for r in course]) for name, course in courses.items()}
apart = np.abs(losses_of["pmap"] - losses_of["shard_map"])[: steps // 4].max()
print(f"losses of the first quarter differ by {apart:.1e} at most")
assert apart < 1e-3

# %% [markdown]
# ## Interrupted
#
# Orbax writes a checkpoint beside its final name and renames it when whole, so that a run that is
# killed leaves only whole ones; the last two and the best by validation are kept. Each has digests
# of its arrays: a damaged one is left out with a warning. This function is all that is needed,
# before an interruption and after it: it goes on where the last good checkpoint is. (`train.fit`
# does the same in one call, with `resume=True` after an interruption.)


# %%
def train_with_checkpoints(stop):
    with checkpoints.open_checkpoints(folder, keep=2, best_by="map_at_r") as saved:
        state, begin = start, saved.latest_step() or 0
        if begin:
            state = checkpoints.restore(saved, begin, jax.device_get(state))
            print(f"going on from step {begin}")
        for state, records in train_over_devices("shard_map", state, begin, stop):
            embeddings = train.embed(encoder.encode, state.weights, images.validation.images)
            figures = retrieval(embeddings, images.validation.classes)
            checkpoints.save(saved, int(records[-1]["step"]), state, figures)
        return state


half = steps // 2 // checkpoint_every * checkpoint_every
_ = train_with_checkpoints(half)

# %% [markdown]
# Colab disconnects. Later, in a new session, the same cells up to the last one, and:

# %%
final = train_with_checkpoints(steps)

# %% [markdown]
# It ends where the run that was never interrupted ended, to the last bit:

# %%
for interrupted, never in zip(
    jax.tree.leaves(final), jax.tree.leaves(ends["shard_map"]), strict=True
):
    np.testing.assert_array_equal(interrupted, never)

# %% [markdown]
# (After a change of settings, of `steps` for one, name another folder: those checkpoints are of
# another run.)
#
# ## The map

# %%
embeddings = {
    split: train.embed(encoder.encode, final.weights, getattr(images, split).images)
    for split in ("validation", "test")
}
plots.embedding_map(
    embeddings["test"],
    images.test.classes,
    images=images.test.images,
    class_names=images.class_names,
)

# %% [markdown]
# ## The table
#
# On test images, with the threshold that tells positive from negative pairs chosen on validation,
# beside raw pixels.

# %%
pixels = {
    split: getattr(images, split).images.reshape(len(getattr(images, split).images), -1) / 255
    for split in ("validation", "test")
}
results = {
    title: summarize(
        points["validation"],
        images.validation.classes,
        points["test"],
        images.test.classes,
        pairs=10_000,
    )
    for title, points in (("embedding", embeddings), ("raw pixels", pixels))
}
titles = {
    "precision_at_1": "precision at 1",
    "r_precision": "R-precision",
    "map_at_r": "MAP@R",
    "auc": "pair ROC AUC",
    "eer": "equal error rate",
    "accuracy": "accuracy at the validation threshold",
}
rows = ["| on test | " + " | ".join(results) + " |", "| --- |" + " ---: |" * len(results)]
for key, title in titles.items():
    rows.append(
        f"| {title} | " + " | ".join(f"{one.figures[key]:.4f}" for one in results.values()) + " |"
    )
Markdown("\n".join(rows))

# %%
learned = results["embedding"]
plots.distance_histograms(
    learned.distances, learned.labels, margin=1.2, threshold=learned.threshold
)
