"""Losses: the table of contents.

Pair losses are functions `(distance, label)` for `pair_loss` and `all_pairs_loss`. Label 0 means a
positive pair (similar), label 1 a negative pair (dissimilar). Each carries the distance of its
paper, which is measured unless the caller names another:

    contrastive           squares, with a margin                      Hadsell 2006
    contrastive_halved    with the factors 1/2 of the paper           Hadsell 2006
    contrastive_linear    without squares; signal-to-noise ratio      Musgrave 2020, Yuan 2019
    cosine_embedding      of the cosine distance                      PyTorch
    sentence_contrastive  of sentence-transformers                    Reimers 2019
    sigmoid               learned temperature and bias                Zhai 2023 (SigLIP)
    logistic              a soft margin about a threshold             Hu 2014
    margin_based          a boundary with a margin on either side     Wu 2017

`cosine_embedding`, `sentence_contrastive` and `sigmoid` measure cosine distances, `logistic`
squared Euclidean ones, and the others Euclidean ones. A distance that does not fit the formula
raises a ValueError. A call with hyperparameters alone binds them: `sigmoid(bias=-5.0)`.

Anchor losses look at all pairs of an anchor. These functions make them, for `anchor_loss`:

    ntxent                a positive against all negatives (InfoNCE)  Oord 2018, Chen 2020
    supcon                all positives in a softmax over all         Khosla 2020
    decoupled             without the positive in the denominator     Yeh 2022
    n_pair                of inner products                           Sohn 2016
    nca                   probability of a neighbour of the class     Goldberger 2004
    lifted                soft farthest against soft nearest          Song 2016, Hermans 2017
    multi_similarity      pairs weighed by all others                 Wang 2019
    circle                pairs weighed by how far they have to go    Sun 2020
    tuplet_margin         a positive with a slack                     Yu 2019
    margin_by_class       learned boundaries of classes               Wu 2017
    triplet_hard          farthest positive, nearest negative         Hermans 2017
    fast_ap               average precision by histograms             Cakir 2019

These take a pass over the pairs for every few positives of an anchor:

    triplet_semi_hard     the nearest negative that is farther        Schroff 2015
    triplet_all           all triplets                                Hermans 2017
    angular               the angle at the negative                   Wang 2017
    smooth_ap             average precision by sigmoids               Brown 2020

Proxy losses compare embeddings with learned proxies of the classes, for `proxy_loss`:

    normalized_softmax    classification by cosines                   Zhai 2019
    proxy_nca             by squared distances (ProxyNCA++)           Teh 2020
    proxy_anchor          proxies as anchors                          Kim 2020
    cosface               a margin on the cosine                      Wang 2018
    arcface               a margin on the angle                       Deng 2019
    soft_triple           several centres of a class                  Qian 2019

Hyperparameters of a loss, such as margins and temperatures, are real scalars, traced or not. One of
another shape raises an AssertionError that names it.

`weighted_sum`, `mean_over_pairs` and `contrastive_jax.mining` make losses of other losses. A loss
of your own is a function of a distance and a label, which measures Euclidean distances unless
`with_distance` names another, or an `AnchorLoss` or `TripletLoss` of `contrastive_jax.statistics`.
"""

from contrastive_jax.losses.combined import mean_over_pairs, weighted_sum
from contrastive_jax.losses.pairwise import (
    contrastive,
    contrastive_halved,
    contrastive_linear,
    cosine_embedding,
    logistic,
    margin_based,
    sentence_contrastive,
    sigmoid,
)
from contrastive_jax.losses.proxies import (
    arcface,
    cosface,
    normalized_softmax,
    proxy_anchor,
    proxy_nca,
    soft_triple,
)
from contrastive_jax.losses.ranking import fast_ap, smooth_ap
from contrastive_jax.losses.softmax import decoupled, n_pair, nca, ntxent, supcon
from contrastive_jax.losses.structured import (
    circle,
    lifted,
    margin_by_class,
    multi_similarity,
    tuplet_margin,
)
from contrastive_jax.losses.triplet import angular, triplet_all, triplet_hard, triplet_semi_hard
from contrastive_jax.losses.types import (
    AnchorLoss,
    CentersLoss,
    Mean,
    PairLoss,
    ProxyLoss,
    TripletLoss,
    resolve_distance,
    with_distance,
)

__all__ = [
    "AnchorLoss",
    "CentersLoss",
    "Mean",
    "PairLoss",
    "ProxyLoss",
    "TripletLoss",
    "angular",
    "arcface",
    "circle",
    "contrastive",
    "contrastive_halved",
    "contrastive_linear",
    "cosface",
    "cosine_embedding",
    "decoupled",
    "fast_ap",
    "lifted",
    "logistic",
    "margin_based",
    "margin_by_class",
    "mean_over_pairs",
    "multi_similarity",
    "n_pair",
    "nca",
    "normalized_softmax",
    "ntxent",
    "proxy_anchor",
    "proxy_nca",
    "resolve_distance",
    "sentence_contrastive",
    "sigmoid",
    "smooth_ap",
    "soft_triple",
    "supcon",
    "triplet_all",
    "triplet_hard",
    "triplet_semi_hard",
    "tuplet_margin",
    "weighted_sum",
    "with_distance",
]
