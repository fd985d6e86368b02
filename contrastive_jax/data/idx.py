"""MNIST and Fashion-MNIST from their IDX files, as TFDS builders that need no TensorFlow."""

import gzip
import hashlib
import io
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

_PREFIXES = {"train": "train", "test": "t10k"}
_CLASSES = {
    "fashion_mnist": (
        "T-shirt/top",
        "Trouser",
        "Pullover",
        "Dress",
        "Coat",
        "Sandal",
        "Shirt",
        "Sneaker",
        "Bag",
        "Ankle boot",
    ),
    "mnist": tuple("0123456789"),
}
_SOURCES = {
    "fashion_mnist": "install Debian's package dataset-fashion-mnist, or put the four files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and name it with --data_dir",
    "mnist": "put the four files of http://yann.lecun.com/exdb/mnist into a folder and name it "
    "with --data_dir",
}


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped if its name ends in .gz.

    Args:
      path: of the file.

    Returns:
      A `uint8` array of the shape in its header.

    Raises:
      ValueError: if the file is not whole, or not of this format.
    """
    content = path.read_bytes()
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is not a whole gzip file: {error}") from error
    if content[:3] != b"\0\0\x08" or len(content) < 4 + 4 * content[3]:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with "
            f"{content[:4].hex() or 'nothing'}, expected 000008 and the number of dimensions"
        )
    rank = content[3]
    shape = struct.unpack(f">{rank}I", content[4 : 4 + 4 * rank])
    values = np.frombuffer(content, np.uint8, offset=4 + 4 * rank)
    if values.size != np.prod(shape):
        raise ValueError(f"{path} holds {values.size} values, its header says {list(shape)}")
    return values.reshape(shape)


def find_idx(name: str, data_dir: Path | None) -> dict[str, Path]:
    """Finds the four files of a data set.

    Args:
      name: `"fashion_mnist"` or `"mnist"`.
      data_dir: folder to look in; by default where Debian's packages put data sets.

    Returns:
      Paths by `"train-images"`, `"train-labels"`, `"test-images"` and `"test-labels"`.

    Raises:
      FileNotFoundError: naming the missing file, where it was looked for and how to get it.
    """
    folder = name.replace("_", "-")
    roots = dict.fromkeys([Path(sys.prefix), Path("/usr"), Path("/usr/local")])
    folders = [data_dir] if data_dir else [root / "share/datasets" / folder for root in roots]
    found = {}
    for split, prefix in _PREFIXES.items():
        for kind, rank in (("images", 3), ("labels", 1)):
            stem = f"{prefix}-{kind}-idx{rank}-ubyte"
            paths = [folder / (stem + end) for folder in folders for end in (".gz", "")]
            path = next((path for path in paths if path.is_file()), None)
            if path is None:
                raise FileNotFoundError(
                    f"{name} needs {stem}.gz (or {stem}), which is not in "
                    f"{', '.join(map(str, folders))}; {_SOURCES[name]}"
                )
            found[f"{split}-{kind}"] = path
    return found


class _Idx(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Images and classes from IDX files, whose digest names the folder they are prepared in."""

    VERSION = tfds.core.Version("1.0.0")
    data_set: str

    def __init__(self, *, raw_dir: Path | None = None, data_dir: Path | None = None, **kwargs: Any):
        self.files = find_idx(self.data_set, raw_dir)
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in self.files.values()))
        # Other files are another data set: their prepared copies must not be taken for each other.
        folder = Path(data_dir or tfds.core.constants.DATA_DIR) / "idx" / digest.hexdigest()[:12]
        super().__init__(data_dir=folder, **kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=_CLASSES[self.data_set]),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in _PREFIXES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images = read_idx(self.files[f"{split}-images"])
        labels = read_idx(self.files[f"{split}-labels"])
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{self.files[f'{split}-images']} and {self.files[f'{split}-labels']} must hold "
                f"[N, H, W] images and [N] labels, got {images.shape} and {labels.shape}"
            )
        if labels.max(initial=0) >= len(_CLASSES[self.data_set]):
            raise ValueError(
                f"{self.files[f'{split}-labels']} has label {labels.max()}, expected at most "
                f"{len(_CLASSES[self.data_set]) - 1}"
            )
        for key, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield key, {"image": png(image), "label": int(label)}


class FashionMnistIdx(_Idx):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 and 10,000 images in 10 classes."""

    data_set = "fashion_mnist"


class MnistIdx(_Idx):
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 handwritten digits."""

    data_set = "mnist"


def png(image: np.ndarray) -> bytes:
    """A grey image `[H, W]` as PNG, packed lightly: it is read far more often than sent."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
