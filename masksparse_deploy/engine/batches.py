"""Cutting any number of images into the batches that an engine accepts, and joining its outputs again."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError

__all__ = ["check_images", "run_in_batches"]

Images = npt.NDArray[np.float32]


def check_images(images: Images, input_shape: tuple[int | None, ...]) -> None:
    """Raise a UsageError unless `images` is a non-empty array of the engine's (channels, height, width)."""
    wanted = input_shape[1:]
    fits = images.ndim == len(input_shape) and all(w in (None, s) for w, s in zip(wanted, images.shape[1:], strict=True))
    if not fits or images.shape[0] == 0:
        text = ", ".join("any" if length is None else str(length) for length in ("count", *wanted))
        raise UsageError(f"images of shape {images.shape} do not fit the engine: it takes ({text}) with at least one image")


def run_in_batches(
    run_one: Callable[[Images], Mapping[str, npt.NDArray[Any]]], images: Images, *, batch: int, pad: bool
) -> dict[str, npt.NDArray[Any]]:
    """Run `run_one` on batches of `images` and join the outputs along their first axis.

    Args:
        run_one: one inference, float32 (count, channels, height, width) -> outputs by name, first axis the batch.
        images: float32 (count, channels, height, width), any count.
        batch: images of a batch.
        pad: fill the last batch with zeros up to `batch` (for engines of a fixed batch) and drop the surplus outputs.

    Raises:
        UsageError: an output's first axis is not the batch, so that it cannot be joined.
    """
    parts: list[Mapping[str, npt.NDArray[Any]]] = []
    for start in range(0, len(images), batch):
        piece = images[start : start + batch]
        count = len(piece)
        if pad and count < batch:
            piece = np.concatenate([piece, np.zeros((batch - count, *piece.shape[1:]), piece.dtype)])
        outputs = run_one(np.ascontiguousarray(piece))
        for name, array in outputs.items():
            if array.ndim == 0 or array.shape[0] != len(piece):
                raise UsageError(f"output {name} has shape {array.shape}; its first axis is not the batch of {len(piece)}")
        parts.append({name: array[:count] for name, array in outputs.items()})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
