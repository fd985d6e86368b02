"""The handwritten digits that scikit-learn ships, as a TFDS builder that needs no TensorFlow."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._local import LocalBuilder
from contrastive_jax.data.idx import png
from contrastive_jax.data.splits import hold_out

with needs("train", __name__):
    import tensorflow_datasets as tfds


class DigitsSklearn(LocalBuilder):
    """1,797 digits of 8 x 8 pixels (Alpaydin and Kaynak 1998), three quarters of them for training.

    The quarter for test is drawn class by class with a fixed seed; the set comes without a split.
    """

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(8, 8, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=list("0123456789")),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        with needs("train", __name__):
            from sklearn.datasets import load_digits

        digits = load_digits()
        train, test = hold_out(digits.target, 0.25, seed=0)
        # Grey levels are 0 to 16 there.
        images = np.round(digits.images * (255 / 16)).astype(np.uint8)
        return {
            split: self._generate_examples(images[rows], digits.target[rows])
            for split, rows in (("train", train), ("test", test))
        }

    def _generate_examples(
        self, images: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": png(image), "label": int(label)}
