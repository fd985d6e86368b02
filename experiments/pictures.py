"""Pictures from files, as the images that a run takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.train import Run

with needs("train", "experiments.pictures"):
    from PIL import Image, UnidentifiedImageError

from contrastive_jax.data._own.folders import SUFFIXES
from contrastive_jax.data.images import read_picture


def pictures_in(folder: Path) -> list[Path]:
    """Returns the paths of all pictures in a folder and the folders in it, sorted.

    Raises:
      FileNotFoundError: if there is no such folder, or no picture in it.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths


def read(paths: Sequence[Path], run: Run) -> np.ndarray:
    """Reads pictures as images of the shape that a run takes: grey or of colours, and scaled.

    Args:
      paths: of the pictures, N.
      run: trained.

    Returns:
      Images, `[N, H, W, C]`, of the dtype of the run.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a file is not a picture, is damaged or too large, or the run takes images that
        are not pictures.
    """
    if len(run.image_shape) == 1:
        raise ValueError(
            f"the run takes vectors of {run.image_shape[0]} entries, and pictures are none: embed "
            "them by the model whose vectors it was trained on, and give a file of those (.npz or "
            ".parquet)"
        )
    rows, columns, channels = run.image_shape
    if channels not in (1, 3) or run.image_dtype != "uint8":
        raise ValueError(
            f"the run takes {run.image_dtype} images of {channels} channels, which are no pictures"
        )
    images = np.empty((len(paths), *run.image_shape), np.uint8)
    for k, path in enumerate(paths):
        try:
            # As `contrastive_jax.data` decodes what a run is trained on.
            images[k], _ = read_picture(path.read_bytes(), grey=channels == 1, size=(rows, columns))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no picture {path}") from None
        except UnidentifiedImageError:
            raise ValueError(f"{path} can not be read as a picture: it is none") from None
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"{path} can not be read as a picture: {error}") from None
        except Image.DecompressionBombError as error:
            raise ValueError(f"{path} is too large: {error}") from None
    return images
