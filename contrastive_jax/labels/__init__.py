"""Labels of two rows, where one class of each does not say which pairs are similar.

Losses over all pairs label a pair by the classes of its rows: 0 (similar) for one class and 1
(dissimilar) for two. With `labels=` a function of two rows labels it instead:

    classes = subject, camera  # any tree of arrays with one entry a row, [B] or [B, ...]
    all_pairs_loss(x, classes, labels=labels.same_class_other_group())

The function takes the entries of two rows, the *attributes* of each, and returns 0 (similar), 1
(dissimilar) or -1 (ignored): such a pair counts nowhere. It is written for one pair and mapped over
all of them in tiles, as losses and distances are, so no matrix of labels is stored. It is the same
in both orders wherever a batch is compared with itself. Labels are constants: attributes, and
values that the function closes over, get no gradient.

`all_pairs_loss` with the reductions `"mean"` and `"sum"` also takes a floating label, a grade y in
[0, 1] for how dissimilar two rows are. The loss of the pair is then `(1 - y)` times that of a
positive pair plus `y` times that of a negative one.

This module has functions for common cases, and `PairLabels`, which tells of a function of your own
which pairs are dissimilar without being looked at.
"""

from contrastive_jax.labels.by_class import hierarchy, same_class, same_class_other_group
from contrastive_jax.labels.by_list import given_pairs
from contrastive_jax.labels.by_number import within
from contrastive_jax.labels.by_set import any_shared, as_bits
from contrastive_jax.labels.named import by_name
from contrastive_jax.labels.types import PairLabels, with_mask

__all__ = [
    "PairLabels",
    "any_shared",
    "as_bits",
    "by_name",
    "given_pairs",
    "hierarchy",
    "same_class",
    "same_class_other_group",
    "with_mask",
    "within",
]
