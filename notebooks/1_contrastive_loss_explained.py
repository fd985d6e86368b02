# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # The contrastive loss, explained
#
# A network turns an image into a short vector, its *embedding*. We want embeddings of images that
# show the same thing to lie close together, and those of images that show different things to lie
# apart. Nobody tells the network where an image belongs; all it is told, of two images at a time,
# is whether they are a **positive pair** (similar, label 0) or a **negative pair** (dissimilar,
# label 1). The contrastive loss of Hadsell, Chopra and LeCun (2006) turns that into something to
# minimise:
#
# $$L(D, Y) = (1 - Y)\,D^2 + Y\,\max(0,\ m - D)^2$$
#
# with $D$ the distance between the two embeddings, $Y$ the label and $m$ the margin. The next ten
# minutes take it apart, and end with a map of handwritten digits learned from it.

# %% [markdown]
# The first cell installs the library where it is missing. The library has no release yet: fill in
# `package`, the path of its wheel or of a copy of its repository, or an address that pip installs
# from. Whatever is installed already keeps its version, JAX and Flax included.

# %%
# %matplotlib inline
import importlib.util
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

import flax
import jax

import contrastive_jax

devices = jax.devices()
print(
    f"{jax.default_backend()}: {devices[0].device_kind} x {len(devices)}, "
    f"Python {sys.version.split()[0]}, "
    f"jax {jax.__version__}, flax {flax.__version__}, contrastive_jax {contrastive_jax.__version__}"
)

# %%
import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from IPython.display import HTML, Markdown, display

from contrastive_jax import (
    all_pairs_loss,
    data,
    distances,
    losses,
    models,
    pair_loss,
    plane_plots,
    plots,
    train,
)
from contrastive_jax.evaluation.retrieval import retrieval

# %% tags=["parameters"]
margin = 1.0
frames = 60  # of the animation
steps = 1500  # of training on digits
redrawn_every = 250  # steps between two maps

# %% [markdown]
# ## The goal
#
# Here are small images of digits, 8 by 8 pixels, placed by the two directions in which their pixels
# vary the most. Some digits keep to themselves, most overlap: pixels are a poor measure of what an
# image shows.

# %%
digits = data.load("digits")
pixels = digits.test.images.reshape(len(digits.test.images), -1) / 255
plots.embedding_map(pixels, digits.test.classes, images=digits.test.images)

# %% [markdown]
# ## The distance between two embeddings
#
# An embedding is a vector, and the distance is the ordinary, Euclidean one. It is a function of two
# vectors and nothing else.

# %%
a, b = jnp.array([0.0, 0.0]), jnp.array([0.3, 0.4])
distances.euclidean(a, b)

# %% [markdown]
# The square root has no derivative where the two vectors coincide, and a network that is doing well
# brings positive pairs just there. Written naively, training ends in NaN; here the gradient is 0 at
# that point, as it should be:

# %%
jax.grad(distances.euclidean)(a, a), jax.grad(lambda a: jnp.sqrt(jnp.sum((a - b) ** 2)))(b)

# %% [markdown]
# ## What positive pairs need
#
# To be pulled together: the farther apart, the harder. The loss of a positive pair is $D^2$. Below,
# a star is compared with four similar dots. An arrow shows where a step of gradient descent takes a
# dot, along the negative gradient $-2\,(x - x_\star)$: all go to the star, and those far away go
# fastest.

# %%
angles = 0.5 + 2.4 * np.arange(14)  # turned by the golden angle, they keep apart
radii = np.tile([0.35, 0.7, 1.05, 1.35], 4)[:14] * margin
dots = jnp.asarray(np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1))
star = jnp.zeros(2)


def dot_loss(dot, label):
    return losses.contrastive(distances.euclidean(dot, star), label, margin)


pulls = jax.vmap(jax.grad(dot_loss))  # of one dot, mapped over all of them
positive = jnp.zeros(4, int)
plane_plots.gradient_arrows(dots[:4], pulls(dots[:4], positive), positive)

# %% [markdown]
# If this were all, there would be an easy way out: send every image to one and the same point. The
# loss would be 0, and the embedding worth nothing.
#
# ## What negative pairs need
#
# To be pushed apart, but not for ever: only until they are a *margin* apart. Their loss is $\max(0,
# m - D)^2$. Squares inside of the circle are pushed out, the harder the closer they are; squares
# beyond it have no arrow. They are far enough, and the network is left to care about others.

# %%
negative = jnp.ones(10, int)
plane_plots.gradient_arrows(dots[4:], pulls(dots[4:], negative), negative, margin=margin)

# %% [markdown]
# ## The single formula
#
# The label picks one of the two terms: with $Y = 0$ only $D^2$ is left, with $Y = 1$ only the
# other.

# %%
plots.loss_curve(losses.contrastive, margin)

# %% [markdown]
# As code it is what it is on paper, one line:


# %%
def contrastive(distance, label, margin):
    return (1 - label) * distance**2 + label * jnp.maximum(0, margin - distance) ** 2


# %% [markdown]
# ### Three pairs, by hand
#
# with a margin of 1.

# %%
pairs = [
    ("positive, half a unit apart", 0.5, 0, "0.5²"),
    ("negative, within the margin", 0.3, 1, "(1 - 0.3)²"),
    ("negative, beyond the margin", 1.5, 1, "max(0, 1 - 1.5)²"),
]
rows = ["| pair | D | Y | by hand | loss |", "| --- | ---: | ---: | ---: | ---: |"]
for name, distance, label, by_hand in pairs:
    value = losses.contrastive(distance, label, 1.0)
    rows.append(f"| {name} | {distance} | {label} | {by_hand} | {value:.2f} |")
    assert np.isclose(value, contrastive(distance, label, 1.0))
Markdown("\n".join(rows))

# %% [markdown]
# A batch of pairs is the same function mapped over its rows. `pair_loss` does that, and the
# distance along with it:

# %%
first = jnp.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
second = jnp.array([[0.3, 0.4], [0.3, 0.0], [0.9, 1.2]])
pair_loss(first, second, jnp.array([0, 1, 1]), margin=1.0)

# %% [markdown]
# ## Both at once
#
# The star in a crowd of similar dots and dissimilar squares. One function, one gradient:

# %%
labels = jnp.asarray(np.arange(14) >= 4, int)
plane_plots.gradient_arrows(dots, pulls(dots, labels), labels, margin=margin)

# %% [markdown]
# And now without a star: dots of three classes, each compared with every other, each moved by
# gradient descent on the loss over all pairs. Nobody says where a class is to be. Press play.

# %%
classes = jnp.arange(24) % 3
start = 0.35 * margin * jax.random.normal(jax.random.key(0), (24, 2))


def crowd(points):
    return all_pairs_loss(points, classes, margin=margin, reduction="balanced")


def move(points, _):
    value, gradient = jax.value_and_grad(crowd)(points)
    return points - 1.0 * gradient, (points, value)


_, (path, values) = jax.jit(lambda start: jax.lax.scan(move, start, length=frames))(start)
animation = plane_plots.descent(
    path, classes, losses=values, margin=margin, class_names=["class A", "class B", "class C"]
)
HTML(animation.to_jshtml())

# %% [markdown]
# Each class falls together to a point, and the points stop a margin apart; there the loss is 0, and
# so is its gradient. With more classes than have room in the plane a margin apart, they would
# settle where pulls and pushes balance.
#
# ## Digits
#
# In the plane the dots moved by themselves. In a network the parameters move, and images that look
# alike move along: that is why it also works for images it was never shown. The network below
# turns 64 pixels into 2 numbers, so that the embedding is the map itself. Each step draws twelve
# images of each digit and compares all of them, 7,140 pairs.

# %%
encoder = train.network(models.MLP((8, 8, 1), width=2, normalize=False, rngs=nnx.Rngs(0)))
optimizer = train.make_optimizer(3e-3, steps, warmup_steps=steps // 50, weight_decay=0.1)
objective = train.objective(losses.contrastive, margin=margin)
step = train.draws_classes(train.make_step(encoder, optimizer, objective), classes=10, examples=12)
device = train.parallel(step, "shard_map", jax.devices()[:1])
images, classes = digits.train.images, digits.train.classes
source = device.replicate(train.Source(images, classes, data.index_by_class(classes)))
hyperparameters = device.replicate(train.Hyperparameters(seed=0))
state = device.replicate(train.init_state(encoder, optimizer))

# %% [markdown]
# The map is redrawn while it learns, of images that the network is not trained on.

# %%
view = display(Markdown("compiling"), display_id=True)
records = []
for state, window in train.windows(
    lambda state: device.step(state, source, hyperparameters),
    state,
    steps=steps,
    window=redrawn_every,
    pairs_per_step=7140,
):
    records += window
    learned = train.embed(encoder.encode, device.fetch(state).weights, digits.test.images)
    figure = plots.embedding_map(learned, digits.test.classes, images=digits.test.images)
    figure.suptitle(f"step {window[-1]['step']}: loss {window[-1]['loss']:.3f}")
    view.update(figure)

# %% [markdown]
# Positive pairs have come together and negative ones have left the margin, until hardly any is
# still active:

# %%
plots.training_curves(records, margin=margin)

# %% [markdown]
# How good is a map of two numbers? *Precision at 1* is how often the nearest neighbour of an image
# is of the same class.

# %%
rows = ["| | numbers | precision at 1 | MAP@R |", "| --- | ---: | ---: | ---: |"]
for name, points in (("pixels", pixels), ("learned", learned)):
    score = retrieval(points, digits.test.classes)
    rows.append(
        f"| {name} | {points.shape[1]} | {score['precision_at_1']:.3f} | {score['map_at_r']:.3f} |"
    )
Markdown("\n".join(rows))

# %% [markdown]
# The neighbourhoods of the map (MAP@R) are those of the classes.
#
# ## In four lines
#
# A wider embedding does better still. `fit` does all of the above and what is left: it validates,
# keeps the best weights and chooses the threshold up to which two images are taken for a positive
# pair. With `runs="runs"` it stores the run too, for `contrastive_jax.load`.

# %%
objective = train.objective("contrastive", margin=1.2)
run = train.fit(models.ConvNet, digits, objective, steps=steps // 3, log_every=10, runs=None)
embeddings = run.embed(digits.test.images)
comparison = run.compare(digits.test.images[:-1], digits.test.images[1:])

same = digits.test.classes[:-1] == digits.test.classes[1:]
print(
    f"precision at 1: {retrieval(embeddings, digits.test.classes)['precision_at_1']:.3f}, "
    f"right about {np.mean(comparison.same == same):.1%} of the pairs of neighbouring images"
)

# %% [markdown]
# `2_train_on_tpu_or_gpu` trains over several devices, `3_margin_ablation` asks which margin is
# best, and `4_write_your_own_loss` puts another formula in the place of this one.
