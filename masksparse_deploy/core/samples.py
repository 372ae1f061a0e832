"""Images as arrays, with labels where they are known: from an .npz file, a folder of images, or a factory."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.archives import refuse_bomb
from masksparse_deploy.core.config import DataOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.factory import is_factory, load_factory
from masksparse_deploy.core.masks import fingerprint
from masksparse_deploy.core.optional import require

__all__ = ["Samples", "read_samples", "read_split"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Images as the network takes them, with their classes where these are known.

    Attributes:
        images: float32 (count, channels, height, width), normalised.
        known_labels: int64 (count,), or None.
    """

    images: npt.NDArray[np.float32]
    known_labels: npt.NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != np.float32:
            raise UsageError(
                f"images are {self.images.dtype} {self.images.shape}, not float32 (count, channels, height, width)"
            )
        labels = self.known_labels
        if labels is not None and labels.shape != (len(self.images),):
            raise UsageError(f"{len(self.images)} images but labels of shape {labels.shape}; one label an image is needed")
        if len(self.images) == 0:
            raise UsageError("the data set is empty; at least one image is needed")
        if not np.isfinite(self.images).all():
            raise ArtifactError("the images hold NaN or infinite values; remove or repair them")

    def __len__(self) -> int:
        return len(self.images)

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The class of every image, int64 (count,); raises UsageError where it is not known."""
        if self.known_labels is None:
            raise UsageError("the data set has no labels; add an array 'labels' with the class of every image")
        return self.known_labels

    @cached_property
    def digest(self) -> str:
        """SHA-256 of images and labels."""
        labels = {} if self.known_labels is None else {"labels": self.known_labels}
        return fingerprint({"images": self.images, **labels})

    def first(self, count: int | None) -> "Samples":
        """The first `count` samples; all for None."""
        if count is None or count >= len(self):
            return self
        return Samples(self.images[:count], None if self.known_labels is None else self.known_labels[:count])


def read_split(data: DataOptions, split: Literal["train", "validation", "test"], folder: Path) -> Samples:
    """The images of one split that `data` describes, cut to its limit.

    Without validation images of their own, the test images stand in for them. Training images may lack labels.

    Raises:
        UsageError: as `read_samples`, or images to measure accuracies on have no labels.
        ArtifactError: as `read_samples`.
    """
    if split == "validation" and data.validation is not None:
        source, limit = data.validation, None
    elif split == "train":
        source, limit = data.train, data.train_limit
    else:
        split, source, limit = "test", data.test, data.test_limit
    samples = read_samples(source, folder=folder, mean=data.mean, std=data.std, image_size=data.image_size)
    if split != "train" and samples.known_labels is None:
        raise UsageError(
            f"{source}: the {split} images have no labels, without which no accuracy can be measured; add an array 'labels' "
            "with the class of every image"
        )
    return samples.first(limit)


def read_samples(
    source: str,
    *,
    folder: Path,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    image_size: int | None = None,
) -> Samples:
    """Read a data set.

    Args:
        source: an .npz file with `images` and, where known, `labels`; a folder with one sub-folder of images for each class;
            or "module:callable" returning (images, labels), labels None where unknown. Relative paths start at `folder`.
        folder: where the configuration lies.
        mean: per channel, subtracted after scaling 8-bit images to [0, 1]; only for 8-bit images.
        std: per channel, divided by after subtracting `mean`; only for 8-bit images.
        image_size: height and width that images of a folder are resized and cropped to.

    Images are floating-point (count, channels, height, width) and taken as they are, or uint8
    (count, height, width[, channels]).

    Raises:
        UsageError: no such source, or shapes and types that do not fit.
        ArtifactError: a damaged file, or NaN values.
    """
    path = folder / source
    if path.is_dir():
        images, labels = _from_folder(path, image_size)
    elif is_factory(source) and not path.exists():
        images, labels = _from_factory(source, folder)
    else:
        images, labels = _from_npz(path)
    try:
        if labels is not None and labels.dtype.kind not in "iu":
            raise UsageError(f"labels are {labels.dtype}, not integers")
        return Samples(_normalised(images, mean, std), None if labels is None else labels.astype(np.int64))
    except (UsageError, ArtifactError) as error:
        raise type(error)(f"{source}: {error}") from error


_Arrays = tuple[npt.NDArray[Any], npt.NDArray[Any] | None]


def _from_factory(source: str, folder: Path) -> _Arrays:
    factory = load_factory(source, folder)
    try:
        images, labels = factory()
        return np.asarray(images), None if labels is None else np.asarray(labels)
    except Exception as error:  # the user's code may raise anything
        raise UsageError(
            f"{source} must return a pair of arrays (images, labels) when called without arguments; "
            f"{type(error).__name__}: {error}"
        ) from error


def _from_npz(path: Path) -> _Arrays:
    if not path.is_file():
        raise UsageError(f"data {path} does not exist; give an .npz file, a folder of images, or module:callable")
    refuse_bomb(path)
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            if "images" not in file.files:
                raise UsageError(f"{path} has no array 'images'; it holds {', '.join(file.files) or 'nothing'}")
            return file["images"], file["labels"] if "labels" in file.files else None
    except (BadZipFile, ValueError, OSError, EOFError, AttributeError) as error:
        raise ArtifactError(f"{path} is damaged or not an .npz file ({error}); make it again") from error


def _from_folder(path: Path, image_size: int | None) -> _Arrays:
    if image_size is None:
        raise UsageError(f"{path} is a folder of images: set data.image_size, the height and width the network takes")
    image_module = require("PIL.Image", needed_for="reading a folder of images")
    ops = require("PIL.ImageOps", needed_for="reading a folder of images")
    classes = [entry for entry in _visible(path) if entry.is_dir()]
    files = [(file, label) for label, entry in enumerate(classes) for file in _visible(entry) if file.is_file()]
    if not files:
        raise UsageError(f"{path} holds no images; it needs one sub-folder for each class, with the images in it")
    pixels = []
    for file, _ in files:
        try:
            with image_module.open(file) as image:
                pixels.append(np.asarray(ops.fit(image.convert("RGB"), (image_size, image_size))))
        except OSError as error:
            raise ArtifactError(f"{file} is not a readable image ({error}); remove or replace it") from error
    return np.stack(pixels), np.array([label for _, label in files], dtype=np.int64)


def _visible(folder: Path) -> list[Path]:
    """What notebooks and file managers hide in a folder is neither a class nor an image."""
    return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))


def _normalised(
    images: npt.NDArray[Any], mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> npt.NDArray[np.float32]:
    if images.dtype == np.uint8:
        if images.ndim == 3:
            images = images[..., None]
        if images.ndim != 4:
            raise UsageError(f"8-bit images have the shape {images.shape}, not (count, height, width[, channels])")
        channels = images.shape[-1]
        for name, values in (("mean", mean), ("std", std)):
            if values is not None and len(values) != channels:
                raise UsageError(f"data.{name} has {len(values)} values, the images have {channels} channels")
        if std is not None and min(std) <= 0:
            raise UsageError(f"data.std is {list(std)}; every channel's standard deviation must be above 0")
        offset, scale = (np.asarray(values or [default], np.float32) for values, default in ((mean, 0.0), (std, 1.0)))
        scaled = (images.astype(np.float32) / np.float32(255) - offset) / scale
        return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))
    if mean is not None or std is not None:
        raise UsageError(f"data.mean and data.std are for 8-bit images; these are {images.dtype} and taken as they are")
    if images.dtype.kind != "f":
        raise UsageError(f"images are {images.dtype}; give 8-bit (uint8) images, or normalised floating-point ones")
    return np.ascontiguousarray(images, dtype=np.float32)
