"""Errors for names that no loss has, with hints for the names of pytorch-metric-learning.

The names are those of pytorch-metric-learning 2.9
<https://kevinmusgrave.github.io/pytorch-metric-learning/>.
"""

import difflib
from collections.abc import Sequence

PEERS = {
    "AngularLoss": ("angular",),
    "ArcFaceLoss": ("arcface",),
    "CircleLoss": ("circle",),
    "ContrastiveLoss": ("contrastive_linear", "contrastive", "contrastive_halved"),
    "CosFaceLoss": ("cosface",),
    "FastAPLoss": ("fast_ap",),
    "GeneralizedLiftedStructureLoss": ("lifted",),
    "LargeMarginSoftmaxLoss": ("cosface", "arcface"),
    "LiftedStructureLoss": ("lifted",),
    "MarginLoss": ("margin_based", "margin_by_class", "mined_distance_weighted"),
    "MultiSimilarityLoss": ("multi_similarity",),
    "NCALoss": ("nca",),
    "NPairsLoss": ("n_pair",),
    "NTXentLoss": ("ntxent",),
    "NormalizedSoftmaxLoss": ("normalized_softmax",),
    "ProxyAnchorLoss": ("proxy_anchor",),
    "ProxyNCALoss": ("proxy_nca",),
    "SignalToNoiseRatioContrastiveLoss": ("signal_to_noise",),
    "SmoothAPLoss": ("smooth_ap",),
    "SoftTripletLoss": ("soft_triple",),
    "SphereFaceLoss": ("cosface", "arcface"),
    "SubCenterArcFaceLoss": ("arcface", "soft_triple"),
    "SupConLoss": ("supcon",),
    "TripletMarginLoss": ("triplet_all", "triplet_hard", "triplet_semi_hard"),
    "TupletMarginLoss": ("tuplet_margin",),
}
"""Losses of pytorch-metric-learning, with those of the table that are the same or the closest."""


def check_name(name: str, names: Sequence[str]) -> None:
    """Checks that a loss is one of those that have a name.

    Args:
      name: of a loss.
      names: of all losses of the table.

    Raises:
      ValueError: if it is not, naming the losses close to it, or all of them if none is.

    Example:
      >>> from contrastive_jax.train.loss_names import check_name
      >>> check_name("supcon", ["contrastive", "supcon"])
    """
    if name in names:
        return
    peers = {_plain(peer): (peer, ours) for peer, ours in PEERS.items()}
    if _plain(name) in peers:
        peer, ours = peers[_plain(name)]
        hint = f"{peer} of pytorch-metric-learning is {', '.join(ours)} here"
    elif close := difflib.get_close_matches(name, names, n=3):
        hint = f"close to it: {', '.join(close)}"
    else:
        hint = f"the losses are {', '.join(names)}"
    raise ValueError(f"unknown loss {name}; {hint}")


def _plain(name: str) -> str:
    """Removes what people write a name of pytorch-metric-learning with or without."""
    return name.rpartition(".")[2].lower().replace("_", "").removesuffix("loss")
