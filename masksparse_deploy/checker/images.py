"""The images that a certificate is about: read from an .npz file, and their digest."""

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.checker.errors import DamagedError, UsageError

__all__ = ["Images", "read_images"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Images:
    """Images as the network takes them, float32 (count, channels, height, width), and labels int64 (count,) or None."""

    images: Array
    labels: Array | None

    @property
    def sha256(self) -> str:
        """The digest: of one line for each array, by name, with its type, shape and the SHA-256 of its bytes."""
        arrays = {"images": self.images, **({} if self.labels is None else {"labels": self.labels})}
        lines = [
            f"{name}|{array.dtype.str}|{array.shape}|{hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()}"
            for name, array in sorted(arrays.items())
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def read_images(path: Path, *, mean: Sequence[float] = (), std: Sequence[float] = (), limit: int | None = None) -> Images:
    """Read `images` and, if there are any, `labels`.

    Args:
        path: an .npz file. Real images (count, channels, height, width) are taken as they are, uint8 images
            (count, height, width[, channels]) are divided by 255.
        mean: per channel, subtracted from uint8 images after the division.
        std: per channel, by which these are divided then.
        limit: only so many images are read; all by default.

    Raises:
        UsageError: there is no such file, or no array of that name and form.
        DamagedError: not an .npz file.
    """
    if not path.is_file():
        raise UsageError(f"data {path} does not exist; give the .npz file that the certificate was made with")
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "images" not in file.files:
                raise UsageError(f"{path} has no array 'images'; it holds {', '.join(file.files) or 'nothing'}")
            images, labels = file["images"], file["labels"] if "labels" in file.files else None
    except (ValueError, OSError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise DamagedError(f"{path} is damaged or not an .npz file ({error}); make it again") from error
    if images.dtype == np.uint8 and images.ndim in (3, 4):
        images = images[..., None] if images.ndim == 3 else images
        shift, scale = (np.asarray(list(given) or [default], np.float32) for given, default in ((mean, 0.0), (std, 1.0)))
        images = ((images.astype(np.float32) / np.float32(255) - shift) / scale).transpose(0, 3, 1, 2)
    if images.dtype.kind != "f" or images.ndim != 4 or not len(images):
        raise UsageError(f"{path}: images are {images.dtype} {images.shape}, not real numbers (count, channels, height, width)")
    images = np.ascontiguousarray(images, dtype=np.float32)[:limit]
    return Images(images=images, labels=None if labels is None else labels.astype(np.int64)[:limit])
