"""MNIST, Fashion-MNIST and sets like them from IDX files, as TFDS builders without TensorFlow."""

import gzip
import hashlib
import io
import math
import re
import struct
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._local import LocalBuilder
from contrastive_jax.data.sizes import check_fits

with needs("train", __name__):
    import tensorflow_datasets as tfds
    from PIL import Image

_SPLITS = {"train": "train", "t10k": "test", "test": "test"}
_RANKS = {"images": 3, "labels": 1}
_FOUR = tuple((split, kind) for split in ("train", "test") for kind in _RANKS)
# Some archives have dots where others have dashes, and EMNIST has its name before that of the file.
_FILE = re.compile(
    r"(?P<set>.*?)(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[13]-ubyte(\.gz)?"
)
_CHUNK = 2**20
# Deflate makes a run of 258 bytes of two bits at best.
_MOST_PER_BYTE = 1032
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
_ROOTS = tuple(dict.fromkeys([Path(sys.prefix), Path("/usr"), Path("/usr/local")]))
_FILES = "{train,t10k}-{images-idx3,labels-idx1}-ubyte"
_SOURCES = {
    "fashion_mnist": "install Debian's package dataset-fashion-mnist, or put the four files of "
    "https://github.com/zalandoresearch/fashion-mnist into a folder and name it with --data_dir; "
    "torchvision.datasets.FashionMNIST(FOLDER, download=True) puts them below FOLDER",
    "mnist": f"put the four files {_FILES}, gzipped or not, into a folder and name it with "
    "--data_dir; torchvision.datasets.MNIST(FOLDER, download=True) puts them below FOLDER",
    "idx": f"put the four files {_FILES}, gzipped or not, into a folder and name it with "
    "--data_dir",
}


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file of unsigned bytes, gzipped or not, whatever its name.

    Nothing is unpacked beyond what the header says, and nothing allocated that can not be there.

    Args:
      path: of the file.

    Returns:
      A `uint8` array of the shape in its header.

    Raises:
      ValueError: if the file can not be read, is not whole or not of this format, or holds more
        than the memory of the machine.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.data.idx import read_idx
      >>> path = Path("labels-idx1-ubyte")
      >>> _ = path.write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 3]) + bytes([7, 2, 1]))
      >>> print(read_idx(path))
      [7 2 1]
    """
    try:
        with path.open("rb") as file:
            begin, size = file.read(3), path.stat().st_size
            file.seek(0)
            if begin[:2] == b"\x1f\x8b":
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _read_stream(path, unpacked, size * _MOST_PER_BYTE)
            if path.suffix == ".gz" and begin != b"\0\0\x08":
                raise ValueError(
                    f"{path} is not a whole gzip file, nor an IDX file that was unpacked: it "
                    f"begins with {begin.hex() or 'nothing'}; get it anew"
                )
            return _read_stream(path, file, size)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a whole gzip file: {error}; get it anew") from error
    except OSError as error:
        raise ValueError(_forbidden(path, error)) from error


def _forbidden(path: Path, error: OSError) -> str:
    return (
        f"{path} can not be read: {type(error).__name__}: {error.strerror or error}; make it "
        "readable, or name another folder with --data_dir"
    )


def _read_stream(path: Path, stream: BinaryIO | gzip.GzipFile, most: int) -> np.ndarray:
    """Reads an IDX file from a stream that holds `most` bytes or less."""
    begin = stream.read(4)
    rank = begin[3] if len(begin) == 4 else 0
    header = stream.read(4 * rank)
    if begin[:3] != b"\0\0\x08" or len(header) < 4 * rank or len(begin) < 4:
        raise ValueError(
            f"{path} is not an IDX file of unsigned bytes: it begins with "
            f"{begin.hex() or 'nothing'}, expected 000008 and the number of dimensions"
        )
    shape = struct.unpack(f">{rank}I", header)
    size = math.prod(shape)
    told = f"its header says {list(shape)}"
    if size > most:
        held = most - 4 - 4 * rank
        holds = f"holds {held}" if isinstance(stream, io.BufferedReader) else f"can not hold {size}"
        raise ValueError(f"{path} {holds} values, {told}; get it anew")
    check_fits(size, f"the values of {path}", f"{told}; get it anew if that is wrong")
    values = np.empty(size, np.uint8)
    filled = 0
    while filled < size and (chunk := stream.read(min(_CHUNK, size - filled))):
        values[filled : filled + len(chunk)] = np.frombuffer(chunk, np.uint8)
        filled += len(chunk)
    if filled < size:
        raise ValueError(f"{path} holds {filled} values, {told}; get it anew")
    if stream.read(1):
        raise ValueError(f"{path} holds more than {size} values, {told}; get it anew")
    return values.reshape(shape)


def find_idx(name: str, data_dir: Path | None) -> dict[str, Path]:
    """Finds the four files of a data set.

    They are named `train-images-idx3-ubyte` and the like, with or without `.gz`, with a dot before
    `idx` or a dash, as a file or as a folder of that name with the file in it. The name of the set
    may stand before it, as in EMNIST's files, and `test` in place of `t10k`.

    Args:
      name: `"fashion_mnist"`, `"mnist"` or `"idx"`.
      data_dir: folder to look in, and in `raw` and `MNIST/raw` (`FashionMNIST/raw`) below it; by
        default where Debian's packages put data sets.

    Returns:
      Paths by `"train-images"`, `"train-labels"`, `"test-images"` and `"test-labels"`, all in one
      folder.

    Raises:
      FileNotFoundError: naming the missing file, where it was looked for and how to get it.
      ValueError: if the folder can not be read, or holds the files of several sets.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.data.idx import find_idx
      >>> for split in ("train", "t10k"):
      ...     Path(f"{split}-images-idx3-ubyte").touch()
      ...     Path(f"{split}-labels-idx1-ubyte").touch()
      >>> find_idx("idx", Path())["test-images"].name
      't10k-images-idx3-ubyte'
    """
    if data_dir is None:
        folders = [root / "share/datasets" / name.replace("_", "-") for root in _ROOTS]
    else:
        below = {"mnist": ["raw", "MNIST/raw"], "fashion_mnist": ["raw", "FashionMNIST/raw"]}
        folders = [data_dir, *(data_dir / folder for folder in below.get(name, ["raw"]))]
    sets = {(folder, one): files for folder in folders for one, files in _sets(folder).items()}
    for folder in folders:
        whole = [one for (where, one), files in sets.items() if where == folder and len(files) == 4]
        if len(whole) == 1 or "" in whole:
            files = sets[folder, "" if "" in whole else whole[0]]
            return {f"{split}-{kind}": files[f"{split}-{kind}"] for split, kind in _FOUR}
        if whole:
            raise ValueError(
                f"{folder} holds several data sets: {', '.join(map(repr, sorted(whole)))}; put the "
                "four files of one into a folder of its own and name it with --data_dir"
            )
    most = max(sets.values(), key=len, default={})
    split, kind = next(pair for pair in _FOUR if "-".join(pair) not in most)
    missing = f"{'train' if split == 'train' else 't10k'}-{kind}-idx{_RANKS[kind]}-ubyte"
    raise FileNotFoundError(
        f"{name} needs {missing}.gz (or {missing}), which is not in "
        f"{', '.join(map(str, folders[:1] if data_dir else folders))}; {_SOURCES[name]}"
    )


def _sets(folder: Path) -> dict[str, dict[str, Path]]:
    """Returns the IDX files in a folder, by the prefix of their names, split and content."""
    sets: dict[str, dict[str, Path]] = {}
    try:
        # Gzipped files last, which are preferred, and those with a dash before them.
        entries = sorted(
            folder.iterdir(), key=lambda path: (path.suffix == ".gz", ".idx" not in path.name)
        )
        for entry in entries:
            if not (name := _FILE.fullmatch(entry.name)):
                continue
            key = f"{_SPLITS[name['split']]}-{name['kind']}"
            inside = sorted(entry.iterdir()) if entry.is_dir() else [entry]
            for path in inside:
                other = _FILE.fullmatch(path.name)
                if other and path.is_file() and f"{_SPLITS[other['split']]}-{other['kind']}" == key:
                    sets.setdefault(name["set"], {})[key] = path
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ValueError(_forbidden(folder, error)) from error
    return sets


def class_names(name: str, files: dict[str, Path]) -> tuple[str, ...]:
    """Returns the names of the classes of a data set; by default they are its labels.

    Args:
      name: as of `find_idx`.
      files: from `find_idx`.

    Returns:
      The names, in the order of the labels.

    Raises:
      ValueError: if a file of labels is damaged.

    Example:
      >>> from contrastive_jax.data.idx import class_names
      >>> class_names("fashion_mnist", {})[:2]
      ('T-shirt/top', 'Trouser')
    """
    if name in _CLASSES:
        return _CLASSES[name]
    labels = [np.unique(read_idx(files[f"{split}-labels"])) for split in ("train", "test")]
    return tuple(map(str, np.unique(np.concatenate(labels)).tolist()))


def folder_of(files: dict[str, Path], root: Path) -> Path:
    """Returns the folder in which a data set of these files is prepared.

    Other files are another data set: their prepared copies must not be taken for each other.

    Args:
      files: from `find_idx`.
      root: folder of prepared data sets.

    Returns:
      A folder below `root`, named by a digest of the contents.

    Raises:
      ValueError: if a file can not be read.

    Example:
      >>> from pathlib import Path
      >>> from contrastive_jax.data.idx import folder_of
      >>> _ = Path("images").write_bytes(b"pixels")
      >>> folder_of({"train-images": Path("images")}, Path("prepared")).as_posix()
      'prepared/idx/6ec9c2b0eb14'
    """
    digest = hashlib.sha256()
    for path in files.values():
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise ValueError(_forbidden(path, error)) from error
    return root / "idx" / digest.hexdigest()[:12]


class _Idx(LocalBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Images and classes from IDX files."""

    VERSION = tfds.core.Version("1.0.0")
    named_by_labels = False

    def __init__(self, *, files: dict[str, Path], class_names: tuple[str, ...], **kwargs: Any):
        self.files, self.class_names = files, class_names
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(None, None, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(names=self.class_names),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in ("train", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        images = read_idx(self.files[f"{split}-images"])
        labels = read_idx(self.files[f"{split}-labels"])
        if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
            raise ValueError(
                f"{self.files[f'{split}-images']} and {self.files[f'{split}-labels']} must hold "
                f"[N, H, W] images and [N] labels, got {images.shape} and {labels.shape}"
            )
        if labels.max(initial=0) >= len(self.class_names) and not self.named_by_labels:
            raise ValueError(
                f"{self.files[f'{split}-labels']} has label {labels.max()}, expected at most "
                f"{len(self.class_names) - 1}; --dataset idx takes any labels"
            )
        for key, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            number = self.class_names.index(str(label)) if self.named_by_labels else label
            yield key, {"image": png(image), "label": number}


class FashionMnistIdx(_Idx):
    """Fashion-MNIST (Xiao, Rasul and Vollgraf 2017): 60,000 and 10,000 images in 10 classes."""


class MnistIdx(_Idx):
    """MNIST (LeCun et al. 1998): 60,000 and 10,000 handwritten digits."""


class AnyIdx(_Idx):
    """Any other set of grey images, such as EMNIST (Cohen et al. 2017), its classes its labels."""

    named_by_labels = True


BUILDERS = {"fashion_mnist": FashionMnistIdx, "mnist": MnistIdx, "idx": AnyIdx}


def png(image: np.ndarray) -> bytes:
    """Encodes a grey image `[H, W]` as PNG, with little compression, as it is read often.

    Example:
      >>> import numpy as np
      >>> from contrastive_jax.data.idx import png
      >>> png(np.zeros((8, 8), np.uint8))[1:4]
      b'PNG'
    """
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "png", compress_level=1)
    return buffer.getvalue()
