"""Pictures from files, as the images that a trained encoder takes."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from contrastive_jax._extras import needs
from contrastive_jax.data._own.folders import SUFFIXES
from contrastive_jax.data.images import read_picture

with needs("train", __name__):
    from PIL import Image, UnidentifiedImageError


def pictures_in(folder: Path) -> list[Path]:
    """Returns the paths of all pictures in a folder and the folders in it, sorted.

    Raises:
      FileNotFoundError: if there is no such folder, or no picture in it.

    Example:
      >>> from pathlib import Path
      >>> import numpy as np
      >>> from PIL import Image
      >>> from contrastive_jax.data.pictures import pictures_in
      >>> Image.fromarray(np.zeros((16, 16), np.uint8)).save("zero.png")
      >>> [path.name for path in pictures_in(Path())]
      ['zero.png']
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder of pictures")
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"{folder} has no pictures ({', '.join(SUFFIXES)})")
    return paths


def read_pictures(
    paths: Sequence[str | Path], image_shape: Sequence[int], image_dtype: str = "uint8"
) -> np.ndarray:
    """Reads pictures as images of the shape that an encoder takes: grey or of colours, and scaled.

    They are decoded as those of `contrastive_jax.data.load` are.

    Args:
      paths: of the pictures, N.
      image_shape: `(H, W, C)`, such as `Run.image_shape`.
      image_dtype: dtype of the images that the encoder was trained on, `Run.image_dtype`.

    Returns:
      Images, `[N, H, W, C]`, uint8.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a file is not a picture, is damaged or too large, or the encoder takes images
        that are not pictures.

    Example:
      >>> import numpy as np
      >>> from PIL import Image
      >>> from contrastive_jax.data.pictures import read_pictures
      >>> Image.fromarray(np.zeros((16, 16), np.uint8)).save("zero.png")
      >>> read_pictures(["zero.png"], (8, 8, 1)).shape
      (1, 8, 8, 1)
    """
    if len(image_shape) == 1:
        raise ValueError(
            f"the run takes vectors of {image_shape[0]} entries, and pictures are none: embed "
            "them by the model whose vectors it was trained on, and give a file of those (.npz or "
            ".parquet)"
        )
    rows, columns, channels = image_shape
    if channels not in (1, 3) or image_dtype != "uint8":
        raise ValueError(
            f"the run takes {image_dtype} images of {channels} channels, which are no pictures"
        )
    images = np.empty((len(paths), *image_shape), np.uint8)
    for k, path in enumerate(map(Path, paths)):
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
