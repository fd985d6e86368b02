"""Every loss that pytorch-metric-learning has too, with its gradient, in turn with it.

    pip install -e '.[bench]'
    python -m experiments.benchmarks.losses --results experiments/benchmarks/results

Each row is one loss, here and there, of the same embeddings (float32, width 128, classes of four
examples each, positive pairs about 1.0 apart on the unit sphere and others 1.4) and with the same
numbers, as pytorch-metric-learning has them by default; proxies have their gradient too. Both are
called in turn in one process, and figures are medians of the rounds. Memory is what XLA's analysis
calls temporary, and what the process grew by for the peers; the last column is by how much the
former grows from 4,096 rows to 8,192, 2 where it is linear. The table prints by how much losses
differ, and gradients (of embeddings and of proxies), relative to their largest entry. The gradient
of a hinge jumps where a pair is at the margin, and in float32 some of millions falls on the other
side.

Some peers build more than B x B: pytorch-metric-learning B x B x B (SmoothAP), B x B x D (the ratio
of signal to noise) or all positive pairs by all negative ones (NT-Xent, tuplet margin), optax's
`ntxent` B x B x D. Where that does not fit into the memory of the machine rows are halved until it
does. optax's `triplet_margin_loss` is given triplets: the hardest, found in a B x B matrix, as its
user would.
"""

import dataclasses
import json
import math
import resource
import statistics
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from contrastive_jax._extras import needs

with needs("bench", "experiments.benchmarks.losses"):
    import psutil
    import torch
    import tyro
    from pytorch_metric_learning import losses as peers
    from pytorch_metric_learning import miners

from contrastive_jax import all_pairs_loss, anchor_loss, distances, losses, proxy_loss
from experiments.benchmarks.all_pairs import WIDTH, give_back, table, timed, unit

EXAMPLES = 4
CENTERS = 3


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the benchmark."""

    batch: int = 4096
    """Rows of the batch, a multiple of 4."""
    rounds: int = 7
    """Rounds, of which medians are shown."""
    only: tuple[str, ...] = ()
    """Names of rows; all by default."""
    results: Path | None = None
    """Folder for the figures as JSON."""


class Row(NamedTuple):
    """A loss here and there."""

    ours: Callable[..., jax.Array]
    """A function of embeddings, classes and proxies."""
    peer: Callable[..., Any]
    """From the number of classes to a module, or a function of JAX, of embeddings and classes."""
    proxies: Callable[[torch.Tensor], torch.Tensor] | None = None
    """The parameter of a peer, or its gradient, as proxies `[C, D]` or `[C, K, D]`."""
    most: int = 2**20
    """Rows that the peer can take at most."""
    examples: int = EXAMPLES
    """Examples of each class."""
    name: str = "pytorch-metric-learning"


def _unit(x: jax.Array) -> jax.Array:
    return jnp.divide(x, jnp.linalg.norm(x, axis=1, keepdims=True))


def _pair_value(
    loss: Callable[..., jax.Array], margin: float, distance: Callable[..., jax.Array] | None = None
) -> Any:
    def value(x: jax.Array, classes: jax.Array, _: Any) -> jax.Array:
        # The signal-to-noise ratio knows no length; the peer normalises all the same.
        options: Any = {"loss": loss, "distance": distance, "margin": margin}
        return all_pairs_loss(_unit(x), classes, reduction="active", **options)

    return value


def _anchor_value(
    loss: Any, *, normalize: bool = False, reduction: Any = "mean", **constants: Any
) -> Any:
    def value(x: jax.Array, classes: jax.Array, _: Any) -> jax.Array:
        data = tuple(jnp.full(len(x), number) for number in constants.values())
        x = _unit(x) if normalize else x
        return anchor_loss(x, classes, loss=loss, data=data, reduction=reduction)

    return value


def _proxy_value(loss: Any) -> Any:
    def value(x: jax.Array, classes: jax.Array, proxies: jax.Array) -> jax.Array:
        return proxy_loss(x, classes, proxies, loss=loss)

    return value


def _n_pair(x: jax.Array, classes: jax.Array, _: Any) -> jax.Array:
    """The first example of each class is an anchor and the second its positive."""
    x = _unit(x)
    sets = x[::EXAMPLES], classes[::EXAMPLES], x[1::EXAMPLES], classes[1::EXAMPLES]
    return anchor_loss(*sets, loss=losses.n_pair())


class _Mined(torch.nn.Module):
    """The triplets of a miner."""

    def __init__(self, loss: torch.nn.Module, miner: torch.nn.Module) -> None:
        super().__init__()
        self.loss, self.miner = loss, miner

    def forward(self, x: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = self.loss(x, classes, self.miner(x, classes))
        return value


def _optax_ntxent(x: jax.Array, classes: jax.Array) -> jax.Array:
    value: jax.Array = optax.losses.ntxent(x, classes, temperature=0.07)
    return value


def _optax_triplet(x: jax.Array, classes: jax.Array) -> jax.Array:
    x = _unit(x)
    fixed = jax.lax.stop_gradient(x)
    product = jnp.matmul(fixed, fixed.T, precision=jax.lax.Precision.HIGHEST)
    same = classes[:, None] == classes
    positive = jnp.argmin(jnp.where(same & ~jnp.eye(len(x), dtype=bool), product, jnp.inf), axis=1)
    negative = jnp.argmax(jnp.where(same, -jnp.inf, product), axis=1)
    loss = optax.losses.triplet_margin_loss
    value: jax.Array = loss(x, x[positive], x[negative], margin=0.2).mean()
    return value


def _columns(parameter: torch.Tensor) -> torch.Tensor:
    return parameter.T


ROWS: dict[str, Row] = {
    "contrastive_linear": Row(
        # Margins within which about half of the negative pairs lie.
        _pair_value(losses.contrastive_linear, 1.41),
        lambda _: peers.ContrastiveLoss(pos_margin=0, neg_margin=1.41),
    ),
    "signal_to_noise": Row(
        _pair_value(losses.contrastive_linear, 2.0, distances.signal_to_noise),
        lambda _: peers.SignalToNoiseRatioContrastiveLoss(pos_margin=0, neg_margin=2),
    ),
    "ntxent": Row(_anchor_value(losses.ntxent(0.07)), lambda _: peers.NTXentLoss(0.07)),
    "supcon": Row(_anchor_value(losses.supcon(0.1)), lambda _: peers.SupConLoss(0.1)),
    "n_pair": Row(_n_pair, lambda _: peers.NPairsLoss()),
    "nca": Row(_anchor_value(losses.nca(1.0), normalize=True), lambda _: peers.NCALoss(1)),
    "lifted": Row(
        _anchor_value(losses.lifted(1.0), normalize=True),
        lambda _: peers.GeneralizedLiftedStructureLoss(neg_margin=1, pos_margin=0),
    ),
    "multi_similarity": Row(
        _anchor_value(losses.multi_similarity()), lambda _: peers.MultiSimilarityLoss(2, 50, 0.5)
    ),
    "circle": Row(_anchor_value(losses.circle()), lambda _: peers.CircleLoss(0.4, 80)),
    "tuplet_margin": Row(
        _anchor_value(losses.tuplet_margin(math.radians(5.73))),
        lambda _: peers.TupletMarginLoss(5.73, 64),
    ),
    "margin_by_class": Row(
        _anchor_value(losses.margin_by_class(0.2), normalize=True, boundary=1.2),
        lambda _: peers.MarginLoss(margin=0.2, beta=1.2),
    ),
    "triplet_hard": Row(
        _anchor_value(losses.triplet_hard(0.2), normalize=True, reduction="active"),
        lambda _: _Mined(peers.TripletMarginLoss(0.2), miners.BatchHardMiner()),
    ),
    "triplet_all": Row(
        _anchor_value(losses.triplet_all(0.2), normalize=True, reduction="active"),
        lambda _: peers.TripletMarginLoss(0.2),
    ),
    "triplet_all, smooth": Row(
        _anchor_value(losses.triplet_all(0.2, smooth=True), normalize=True, reduction="active"),
        lambda _: peers.TripletMarginLoss(0.2, smooth_loss=True),
    ),
    "angular": Row(
        _anchor_value(losses.angular(math.radians(40))),
        lambda _: peers.AngularLoss(40),
    ),
    "fast_ap": Row(_anchor_value(losses.fast_ap()), lambda _: peers.FastAPLoss(10)),
    "smooth_ap": Row(
        _anchor_value(losses.smooth_ap(0.01, include_query=True)),
        lambda _: peers.SmoothAPLoss(0.01),
        # It takes as many groups of rows for classes as there are rows in one.
        most=256,
        examples=16,
    ),
    "normalized_softmax": Row(
        _proxy_value(losses.normalized_softmax(0.05)),
        lambda classes: peers.NormalizedSoftmaxLoss(classes, WIDTH, 0.05),
        _columns,
    ),
    "proxy_nca": Row(
        _proxy_value(losses.proxy_nca(1.0)),
        lambda classes: peers.ProxyNCALoss(classes, WIDTH, softmax_scale=1),
        lambda parameter: parameter,
    ),
    "proxy_anchor": Row(
        _proxy_value(losses.proxy_anchor()),
        lambda classes: peers.ProxyAnchorLoss(classes, WIDTH, 0.1, 32),
        lambda parameter: parameter,
    ),
    "cosface": Row(
        _proxy_value(losses.cosface()),
        lambda classes: peers.CosFaceLoss(classes, WIDTH, margin=0.35, scale=64),
        _columns,
    ),
    "arcface": Row(
        _proxy_value(losses.arcface(math.radians(28.6))),
        lambda classes: peers.ArcFaceLoss(classes, WIDTH, margin=28.6, scale=64),
        _columns,
    ),
    "soft_triple": Row(
        _proxy_value(losses.soft_triple()),
        lambda classes: peers.SoftTripleLoss(classes, WIDTH, CENTERS, 20, 0.1, 0.01),
        lambda parameter: _columns(parameter).reshape(-1, CENTERS, WIDTH),
    ),
    "ntxent of optax": Row(
        _anchor_value(losses.ntxent(0.07)), lambda _: _optax_ntxent, most=1024, name="optax"
    ),
    "triplet_hard of optax": Row(
        _anchor_value(losses.triplet_hard(0.2), normalize=True),
        lambda _: _optax_triplet,
        name="optax",
    ),
}


def make_data(batch: int, examples: int = EXAMPLES) -> tuple[np.ndarray, np.ndarray]:
    """Classes of some unit vectors about a centre each."""
    rng = np.random.default_rng(0)
    classes = np.arange(batch) // examples
    centres = rng.standard_normal((batch // examples, WIDTH))
    return unit(centres[classes] + rng.standard_normal((batch, WIDTH))), classes.astype(np.int32)


def _temporary(call: Any, *arguments: Any) -> int:
    compiled = call.lower(*arguments).compile()
    return int(compiled.memory_analysis().temp_size_in_bytes)


def _growth(call: Any, row: Row, proxies: Any) -> float:
    """By how much the temporary memory grows from 4,096 rows, and proxies to them, to twice that.

    Fewer rows are less than a tile, and grow with their square.
    """

    def at(batch: int) -> int:
        x = jax.ShapeDtypeStruct((batch, WIDTH), "float32")
        classes = jax.ShapeDtypeStruct((batch,), "int32")
        count = batch // row.examples
        centers = None
        if proxies is not None:
            centers = jax.ShapeDtypeStruct((count, *proxies.shape[1:]), "float32")
        return _temporary(call, x, classes, centers)

    return at(8192) / at(4096)


def _ours(row: Row, x: np.ndarray, classes: np.ndarray, proxies: Any) -> tuple[Any, Any]:
    """The jitted call, and its arguments."""
    with_proxies = (0, 2) if row.proxies else (0,)
    call = jax.jit(jax.value_and_grad(row.ours, with_proxies))
    return call, (jnp.asarray(x), jnp.asarray(classes), proxies)


def _theirs(row: Row, x: np.ndarray, classes: np.ndarray) -> tuple[Callable[[], Any], Any, Any]:
    """The call of a peer to loss and gradients, its proxies, and its memory by XLA's analysis."""
    peer = row.peer(int(classes.max()) + 1)
    if not isinstance(peer, torch.nn.Module):
        call = jax.jit(jax.value_and_grad(peer))
        arguments = jnp.asarray(x), jnp.asarray(classes)
        return partial(call, *arguments), None, _temporary(call, *arguments)
    rows, labels = torch.from_numpy(x), torch.from_numpy(classes).long()
    oriented = row.proxies
    if oriented is None:
        proxies = None
    else:
        (parameter,) = peer.parameters()
        proxies = jnp.asarray(oriented(parameter.detach()).numpy())

    def called() -> Any:
        leaf = rows.clone().requires_grad_()
        peer.zero_grad()
        value = peer(leaf, labels)
        value.backward()
        if oriented is None:
            return value.detach(), leaf.grad
        return value.detach(), leaf.grad, oriented(parameter.grad)

    return called, proxies, None


def _difference(gradient: Any, wanted: Any) -> float:
    gradient, wanted = np.asarray(gradient), np.asarray(wanted)
    return float(np.abs(gradient - wanted).max() / np.abs(wanted).max())


def compared(name: str, row: Row, config: Config) -> dict[str, Any]:
    """A row of the table, with as many rows as the peer can take."""
    batch = min(config.batch, row.most)
    while True:
        try:
            return compared_at(batch, name, row, config.rounds)
        except (MemoryError, RuntimeError) as error:
            if "alloc" not in str(error) or batch < 64:
                raise
            batch //= 2


def compared_at(batch: int, name: str, row: Row, rounds: int) -> dict[str, Any]:
    """A row of the table."""
    x, classes = make_data(batch, row.examples)
    torch.manual_seed(0)
    theirs, proxies, their_memory = _theirs(row, x, classes)
    call, arguments = _ours(row, x, classes, proxies)
    memory = _temporary(call, *arguments)
    ours = partial(call, *arguments)
    value, gradients = jax.block_until_ready(ours())
    give_back()
    _, grown, (their_value, *their_gradients) = timed(theirs)
    turns: list[tuple[Any, list[float]]] = [(ours, []), (theirs, [])]
    for _ in range(rounds):
        for take, seconds in turns:
            seconds.append(timed(take)[0])
        # What went before leaves caches and pages behind.
        turns.reverse()
    columns = dict(turns)
    mine, peer = statistics.median(columns[ours]), statistics.median(columns[theirs])
    return {
        "loss": name,
        "rows": batch,
        "peer": row.name,
        "seconds": mine,
        "its seconds": peer,
        "times faster": peer / mine,
        "memory": memory,
        "its memory": grown if their_memory is None else their_memory,
        "error of loss": abs(float(value) - float(their_value)) / abs(float(their_value)),
        "error of gradient": max(map(_difference, gradients, their_gradients)),
        "grows": _growth(call, row, proxies),
    }


def main(config: Config) -> None:
    """Runs the benchmark and prints its table."""
    torch.set_num_threads(len(psutil.Process().cpu_affinity()))
    print(
        f"{torch.get_num_threads()} threads, jax {jax.__version__}, torch {torch.__version__}, "
        f"width {WIDTH}, medians of {config.rounds}\n"
    )
    # What does not fit is to fail instead of having the process killed.
    limit = psutil.Process().memory_info().vms + int(0.8 * psutil.virtual_memory().available)
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
    if unknown := {*config.only} - {*ROWS}:
        raise ValueError(f"--only takes of {', '.join(ROWS)}; got {', '.join(unknown)}")
    rows = []
    for name, row in ROWS.items():
        if not config.only or name in config.only:
            rows.append(compared(name, row, config))
            print(table(rows[-1:], list(rows[-1])).splitlines()[-1], flush=True)
    print("\n" + table(rows, list(rows[0])) + "\n")
    ratios = [row["times faster"] for row in rows if row["peer"] == Row._field_defaults["name"]]
    if ratios:
        print(f"times faster: median {statistics.median(ratios):.1f}, least {min(ratios):.1f}")
    if config.results:
        path = config.results / "losses_cpu.json"
        path.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Config, description=str(__doc__).splitlines()[0], use_underscores=True))
