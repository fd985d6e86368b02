# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Which margin? An ablation as one program
#
# "We use a margin of 1" is a sentence of many papers. Whether it matters is a question to a grid:
# some margins, several seeds of each. The margin and the seed are arguments of this library's
# training step, so that one compilation trains them all.
#
# 1. the grid, from one compilation
# 2. the curve, with intervals over seeds
# 3. distances, maps and active pairs for each margin
# 4. how to choose, and how to report

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

# Of use where there is no accelerator: each core becomes a device.
with contextlib.suppress(RuntimeError):  # JAX keeps its devices once it is used
    jax.config.update("jax_num_cpu_devices", os.cpu_count())
devices = jax.devices()
print(
    f"{jax.default_backend()}: {devices[0].device_kind} x {len(devices)}, "
    f"Python {sys.version.split()[0]}, "
    f"jax {jax.__version__}, flax {flax.__version__}, contrastive_jax {contrastive_jax.__version__}"
)

# %%
from functools import partial

import numpy as np
from IPython.display import Markdown

from contrastive_jax import ablation_plots, data, models, train
from contrastive_jax.distances import euclidean
from contrastive_jax.evaluation.intervals import bootstrap_interval
from contrastive_jax.evaluation.summary import drawn_distances

# %% tags=["parameters"]
margins = (0.1, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
seeds = 5
steps = 400
width = 16  # of the embedding

# %% [markdown]
# ## The grid
#
# `fit_grid` takes the arguments of `fit`, and several values where `fit` has one. On a CPU every
# core became a device above, so that it trains a trial of its own; accelerators map the step over
# several trials. The results are the same. `fit_grid` times the ways that there are and says which
# it takes.

# %%
digits = data.load("digits")
trials = train.fit_grid(
    partial(models.MLP, width=width),
    digits,
    train.objective("contrastive", on="pairs", group=16, positive_fraction=0.3),
    margin=margins,
    seed=range(seeds),
    steps=steps,
    optimizer=train.make_optimizer(4e-3, steps, warmup_steps=steps // 50, weight_decay=0.5),
    log_every=max(steps // 20, 1),
)
print(f"{len(trials)} trials, of which {sum(t.diverged is not None for t in trials)} diverged")

# %% [markdown]
# A trial that diverges is marked and leaves the others alone. All others have figures on validation
# and on test, an encoder that embeds images, and a history.

# %%
trained = {
    (t.hyperparameters["margin"], t.hyperparameters["seed"]): t
    for t in trials
    if t.diverged is None
}

# %% [markdown]
# ## The curve
#
# Every trial is evaluated on validation and on test images. Test figures are for the end.

# %%
validation = {key: trial.validation for key, trial in trained.items()}
test = {key: trial.test for key, trial in trained.items()}


def by_margin(figures, metric):
    """Values of all seeds that came to their end, by margin."""
    return {
        margin: [figures[margin, s][metric] for s in range(seeds) if (margin, s) in figures]
        for margin in margins
    }


means = {margin: np.mean(v) for margin, v in by_margin(validation, "map_at_r").items() if v}
chosen = max(means, key=means.get)
print(f"chosen on validation: margin {chosen:g}")

# %% [markdown]
# Dots are trainings, lines their means, bands 95 % bootstrap intervals of the mean over seeds.

# %%
ablation_plots.metric_curves(
    {
        "precision at 1": by_margin(test, "precision_at_1"),
        "MAP@R": by_margin(test, "map_at_r"),
    },
    chosen=chosen,
)

# %% [markdown]
# ## What a margin does
#
# Negative pairs gather just beyond it, as nothing pushes them farther; on the unit sphere, where
# these embeddings lie, random directions are √2 ≈ 1.41 apart and no two points more than 2. A
# margin above 2 can never be met.

# %%
first = {
    margin: trained[margin, 0].run.embed(digits.test.images)
    for margin in margins
    if (margin, 0) in trained
}
ablation_plots.distance_ridge(
    {
        margin: drawn_distances(points, digits.test.classes, euclidean, 10_000, 0)
        for margin, points in first.items()
    }
)

# %% [markdown]
# The maps, each by its first two principal components and in a scale of its own. Within a small
# margin classes are wide clouds, nearly as wide as they are apart; a larger one leaves tight ones.

# %%
ablation_plots.maps(first, digits.test.classes)

# %% [markdown]
# And the share of negative pairs that still have a gradient. Where it nears 0 early the network
# has hardly anything left to learn from; where it stays near 100 % the margin asks for more room
# than there is.

# %%
ablation_plots.active_pairs(
    {
        margin: (trained[margin, 0].history["step"], trained[margin, 0].history["active_fraction"])
        for margin in first
    }
)

# %% [markdown]
# ## How to choose
#
# - By the mean over seeds **on validation**, never by the best seed, and never on test: the best of
#   thirty numbers is high by luck alone.
# - Beside its neighbours. Where intervals overlap widely the curve is flat, and the honest sentence
#   is that the margin does not matter between here and there.
# - With the structure fixed. Another width or encoder is another grid.
#
# ## How to report
#
# Means on test with intervals, of how many seeds, and differences from the chosen margin **seed by
# seed**: what a seed does to all margins alike drops out. A difference is one where its interval
# leaves out 0.


# %%
def percent(interval, sign=""):
    mean, low, high = (f"{100 * value:{sign}.1f}" for value in interval)
    return f"{mean} [{low}, {high}]"


rows = [
    f"| margin | P@1 (%) | MAP@R (%) | MAP@R, difference from {chosen:g} |",
    "| ---: | ---: | ---: | ---: |",
]
for margin in margins:
    both = [s for s in range(seeds) if (margin, s) in test and (chosen, s) in test]
    if not both:
        rows.append(f"| {margin:g} | diverged | | |")
        continue
    values = {metric: by_margin(test, metric)[margin] for metric in ("precision_at_1", "map_at_r")}
    difference = "chosen"
    if margin != chosen:
        gaps = [test[margin, s]["map_at_r"] - test[chosen, s]["map_at_r"] for s in both]
        interval = bootstrap_interval(gaps)
        difference = percent(interval, "+")
        if seeds >= 5 and not interval.low <= 0 <= interval.high:
            difference = f"**{difference}**"
    entries = [percent(bootstrap_interval(column)) for column in values.values()]
    rows.append(f"| {margin:g} | " + " | ".join([*entries, difference]) + " |")
Markdown("\n".join(rows))

# %% [markdown]
# Means of all seeds on test, with 95 % bootstrap intervals (`bootstrap_interval` says how they are
# made, and how far they hold for few seeds); bold differences leave out 0. For a data set of its
# own or a grid that may be interrupted, the repository has `experiments/margin_ablation.py`, which
# writes these figures and the table as CSV, Markdown and LaTeX.
