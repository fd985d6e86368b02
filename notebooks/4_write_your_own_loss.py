# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Write your own loss
#
# A pair loss is one scalar function of a distance and a label. This notebook writes one that the
# library does not have, and gets the rest by transformation: the loss of a batch, of all pairs of a
# batch in linear memory, over several devices, with parameters that are learned. Each is checked
# against a few lines of NumPy in float64.

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

# Of use where there is no accelerator: four devices made of one CPU.
with contextlib.suppress(RuntimeError):  # JAX keeps its devices once it is used
    jax.config.update("jax_num_cpu_devices", 4)
devices = jax.devices()
print(
    f"{jax.default_backend()}: {devices[0].device_kind} x {len(devices)}, "
    f"Python {sys.version.split()[0]}, "
    f"jax {jax.__version__}, flax {flax.__version__}, contrastive_jax {contrastive_jax.__version__}"
)

# %%
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from contrastive_jax import (
    all_pairs_loss,
    anchor_loss,
    data,
    losses,
    models,
    pair_loss,
    plots,
    statistics,
    train,
)

# %% tags=["parameters"]
rows = 4096  # of the batch for all pairs
steps = 600  # of training

# %% [markdown]
# ## The function
#
# The contrastive loss stops pushing at the margin, from one pair to the next. Say we want a soft
# margin: the push fades out over a width `softness` about it,
#
# $$L(D, Y) = (1 - Y)\,D^2 + Y\,s^2 \log^2\left(1 + e^{(m - D)/s}\right)$$
#
# which is the contrastive loss in the limit of $s \to 0$. As a function of scalars, label 0 for
# a positive pair:


# %%
def soft_margin(distance, label, margin=1.0, softness=0.1):
    violation = softness * jax.nn.softplus((margin - distance) / softness)
    return (1 - label) * distance**2 + label * violation**2


plots.loss_curve(soft_margin, margin=1.0)

# %% [markdown]
# ## A batch of pairs
#
# `pair_loss` maps the distance and the loss over the rows. The reference is what the formula says,
# in float64:

# %%
generator = np.random.default_rng(0)
a, b = (generator.normal(size=(100, 8)).astype(np.float32) / 3 for _ in range(2))
labels = generator.integers(0, 2, 100)


def numpy_loss(distance, label, margin, softness):
    violation = softness * np.logaddexp(0, (margin - distance) / softness)
    return np.where(label == 0, distance**2, violation**2)


expected = numpy_loss(np.linalg.norm(a.astype(float) - b, axis=1), labels, 1.0, 0.1)
values = pair_loss(a, b, labels, loss=soft_margin, margin=1.0)
print(f"largest difference {np.abs(values - expected).max():.1e}")
np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)

# %% [markdown]
# The margin is data: ten of them are one more `vmap`, and no other margin compiles again.

# %%
compilations = []


@jax.jit
def mean_loss(margin):
    compilations.append(1)  # runs when the function is traced, and not when it is called
    return pair_loss(a, b, labels, loss=soft_margin, margin=margin).mean()


print(*(f"{value:.3f}" for value in jax.vmap(mean_loss)(jnp.linspace(0.2, 2.0, 10))))
before = len(compilations)
mean_loss(0.5), mean_loss(0.75), mean_loss(1.0)
print(f"{len(compilations) - before} compilation for three margins")
assert len(compilations) - before == 1

# %% [markdown]
# ## All pairs
#
# `all_pairs_loss` walks over the pairs of a batch tile by tile. It takes the derivative of the
# scalar function inside a tile, so that nobody writes a gradient, and loss and gradient come out of
# one walk.

# %%
small, classes = generator.normal(size=(200, 8)).astype(np.float32) / 3, np.arange(200) % 7


def loss_of(embeddings, classes, **options):
    return all_pairs_loss(embeddings, classes, loss=soft_margin, margin=1.0, **options)


value, gradient = jax.jit(jax.value_and_grad(loss_of))(small, classes)

# %% [markdown]
# In NumPy: the mean over all ordered pairs, and its derivative by central differences.


# %%
def numpy_all_pairs(x):
    apart = np.linalg.norm(x[:, None] - x[None], axis=-1)
    every = numpy_loss(apart, classes[:, None] != classes[None], 1.0, 0.1)
    return every[~np.eye(len(x), dtype=bool)].mean()


x, h = small.astype(float), 1e-6
for row, column in [(0, 0), (17, 3), (199, 7)]:
    move = np.zeros_like(x)
    move[row, column] = h
    slope = (numpy_all_pairs(x + move) - numpy_all_pairs(x - move)) / (2 * h)
    print(f"by entry {row, column}: {gradient[row, column]:+.3e}, NumPy {slope:+.3e}")
    np.testing.assert_allclose(gradient[row, column], slope, rtol=1e-3, atol=1e-8)
print(f"loss {value:.6f}, NumPy {numpy_all_pairs(x):.6f}")
np.testing.assert_allclose(value, numpy_all_pairs(x), rtol=1e-5)

# %% [markdown]
# What it does not do is build the square. The memory beside arguments and results, as XLA accounts
# for it, against the same loss on a matrix of all distances:


# %%
def on_the_square(embeddings, classes):
    squares = jnp.sum(embeddings**2, axis=1)
    between = squares[:, None] + squares[None] - 2 * embeddings @ embeddings.T
    between = jnp.sqrt(jnp.maximum(between, 1e-12))
    every = soft_margin(between, (classes[:, None] != classes[None]).astype(jnp.float32))
    return jnp.mean(every)


large = jax.ShapeDtypeStruct((rows, 128), jnp.float32)
for title, function in (("walk", loss_of), ("square", on_the_square)):
    compiled = jax.jit(jax.value_and_grad(function)).lower(
        large, jax.ShapeDtypeStruct((rows,), jnp.int32)
    )
    needed = compiled.compile().memory_analysis().temp_size_in_bytes
    print(f"{title}: {needed / 2**20:,.0f} MB for {rows:,} rows")

# %% [markdown]
# ## Several devices
#
# With an axis name each device holds its share of the rows, and the pairs are those of all devices:
# rows visit each other in a ring. Nothing is to be multiplied or divided by the number of devices.

# %%
devices = jax.devices()
share = 200 // len(devices)
print(f"{len(devices)} devices, {share} rows each")
mesh, split = Mesh(np.array(devices), ("devices",)), PartitionSpec("devices")
over_devices = jax.jit(
    jax.shard_map(
        jax.value_and_grad(partial(loss_of, axis_name="devices")),
        mesh=mesh,
        in_specs=(split, split),
        out_specs=(PartitionSpec(), split),
    )
)
size = share * len(devices)
value_of_all, rows_of_all = over_devices(small[:size], classes[:size])
value_of_one, rows_of_one = jax.value_and_grad(loss_of)(small[:size], classes[:size])
print(f"loss {value_of_all:.6f}, on one device {value_of_one:.6f}")
np.testing.assert_allclose(value_of_all, value_of_one, rtol=1e-5)
np.testing.assert_allclose(rows_of_all, rows_of_one, rtol=1e-4, atol=1e-7)

# %% [markdown]
# The same under `pmap`, where arrays have a leading axis of devices:

# %%
by_pmap, rows_by_pmap = jax.pmap(
    jax.value_and_grad(partial(loss_of, axis_name="devices")), axis_name="devices"
)(small[:size].reshape(len(devices), share, -1), classes[:size].reshape(len(devices), share))
np.testing.assert_allclose(by_pmap, np.full(len(devices), value_of_one), rtol=1e-5)
np.testing.assert_allclose(rows_by_pmap.reshape(size, -1), rows_of_one, rtol=1e-4, atol=1e-7)

# %% [markdown]
# ## Parameters of the loss
#
# Whatever the function closes over gets its gradient too: here the margin and the softness.


# %%
def with_parameters(parameters, embeddings):
    margin, softness = parameters
    return all_pairs_loss(
        embeddings, classes, loss=partial(soft_margin, softness=softness), margin=margin
    )


by_margin, by_softness = jax.grad(with_parameters)((1.0, 0.1), small)
print(f"by margin {by_margin:.4f}, by softness {by_softness:.4f}")

# %% [markdown]
# ## A distance of one's own
#
# A distance is a function of two vectors. One that is no inner product takes the same walk, pair by
# pair:


# %%
def weighted(a, b):
    return jnp.sum(jnp.arange(1, a.size + 1) * jnp.abs(a - b)) / a.size


print(f"{loss_of(small, classes, distance=weighted):.4f}")

# %% [markdown]
# ## More than pairs
#
# Many losses compare an anchor with all its positives and negatives. For those write down what a
# pair adds to a statistic of its anchor, and what the anchor makes of the statistics. The mean
# distance of the positives against a soft minimum over the negatives, say:


# %%
def pair_terms(distance, label):
    is_positive = label == 0
    return (
        statistics.total(distance, is_positive),
        statistics.total(1.0, is_positive),
        statistics.log_sum_exp(-distance / 0.1, ~is_positive),
    )


def anchor_value(stats):
    total, count, nearest = stats
    positives = total / jnp.maximum(count, 1)
    return losses.Mean(jax.nn.softplus(positives + 0.1 * nearest), 1.0)


mean_against_nearest = losses.AnchorLoss(anchor_value, (pair_terms,))
value = anchor_loss(small, classes, loss=mean_against_nearest)

directions = x / np.linalg.norm(x, axis=1, keepdims=True)  # anchor losses are of cosines by default
apart, same = 1 - directions @ directions.T, classes[:, None] == classes[None]
others = ~np.eye(200, dtype=bool)
mean = (apart * (same & others)).sum(1) / (same & others).sum(1)
nearest = np.log(np.where(same, 0, np.exp(-apart / 0.1)).sum(1))
expected = np.logaddexp(0, mean + 0.1 * nearest).mean()
print(f"loss {value:.6f}, NumPy {expected:.6f}")
np.testing.assert_allclose(value, expected, rtol=1e-5)

# %% [markdown]
# ## Trained with
#
# `train.objective` takes any such function, and `fit` trains with it: four lines from the data to
# embeddings of images that the network was never shown.

# %%
digits = data.load("digits")
objective = train.objective(soft_margin, margin=1.0)
encoder = partial(models.MLP, width=2, normalize=False)
run = train.fit(encoder, digits, objective, steps=steps, log_every=10, runs=None)
learned = run.embed(digits.test.images)
plots.embedding_map(learned, digits.test.classes, images=digits.test.images)
