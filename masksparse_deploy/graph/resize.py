"""ONNX Resize as a matrix for each axis: nearest and linear interpolation are linear and work axis by axis."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Node

__all__ = ["apply_resize", "resize_matrices", "resize_obstacle"]

Array = npt.NDArray[Any]

_COORDINATES = ("half_pixel", "pytorch_half_pixel", "asymmetric", "align_corners")
# No image is larger; a damaged file may ask for more.
_LONGEST = 1 << 16
_ROUNDINGS = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")


def resize_obstacle(node: Node) -> str | None:
    """Why a Resize cannot be evaluated, or None."""
    get = node.attributes.get
    if get("mode", "nearest") not in ("nearest", "linear"):
        return f"Resize with mode {get('mode')}"
    if get("coordinate_transformation_mode", "half_pixel") not in _COORDINATES:
        return f"Resize with {get('coordinate_transformation_mode')}"
    if get("antialias", 0) or get("axes") is not None or get("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "Resize with antialias, axes or a fixed aspect ratio"
    return None


def resize_matrices(node: Node, shape: Sequence[int], scales: Array | None, sizes: Array | None) -> list[Array | None]:
    """For each axis of an input of `shape` float64 (new_length, length), with which it is multiplied; None where it stays.

    Args:
        node: a Resize without obstacle.
        shape: of the input, with the count of samples.
        scales: for each axis; None or empty where `sizes` are given.
        sizes: the new lengths.

    Raises:
        ValueError: the scales or sizes do not fit the input, or make it empty or absurdly large.
    """
    matrices: list[Array | None] = []
    for axis, length in enumerate(shape):
        if scales is not None and scales.size:
            scale = float(scales[axis])
            new_length, ratio = math.floor(length * scale), (1.0, scale)
        else:
            assert sizes is not None, "ONNX requires scales or sizes"
            new_length = int(sizes[axis])
            ratio = float(length), float(new_length)
        if not 0 < new_length <= _LONGEST:
            raise ValueError(f"an axis of {length} becomes one of {new_length}")
        matrices.append(None if ratio[0] == ratio[1] else _matrix(node, length, new_length, ratio))
    return matrices


def apply_resize(node: Node, x: Array, scales: Array | None, sizes: Array | None) -> Array:
    """The output of a Resize without obstacle, in the dtype of `x`."""
    for axis, matrix in enumerate(resize_matrices(node, x.shape, scales, sizes)):
        if matrix is not None:
            x = np.moveaxis(np.moveaxis(x, axis, -1) @ matrix.T.astype(x.dtype), -1, axis)
    return x


def _matrix(node: Node, length: int, new_length: int, ratio: tuple[float, float]) -> Array:
    # multiplied before divided, so that positions that are whole numbers come out as such
    mode = node.attributes.get("coordinate_transformation_mode", "half_pixel")
    new = np.arange(new_length, dtype=np.float64)
    if mode == "asymmetric":
        positions = new * ratio[0] / ratio[1]
    elif mode == "align_corners":
        positions = new * (length - 1) / (new_length - 1) if new_length > 1 else np.zeros(1)
    elif mode == "pytorch_half_pixel" and new_length == 1:
        positions = np.zeros(1)
    else:
        positions = (new + 0.5) * ratio[0] / ratio[1] - 0.5
    rows = np.arange(new_length)
    matrix = np.zeros((new_length, length))
    if node.attributes.get("mode", "nearest") == "nearest":
        matrix[rows, np.clip(_rounded(node, positions), 0, length - 1)] = 1.0
        return matrix
    positions = np.clip(positions, 0, length - 1)
    low = np.floor(positions).astype(np.int64)
    share = positions - low
    np.add.at(matrix, (rows, low), 1 - share)
    np.add.at(matrix, (rows, np.minimum(low + 1, length - 1)), share)
    return matrix


def _rounded(node: Node, positions: Array) -> npt.NDArray[np.int64]:
    mode = node.attributes.get("nearest_mode", "round_prefer_floor")
    assert mode in _ROUNDINGS, "the checker knows no other"
    if mode == "floor":
        return np.floor(positions).astype(np.int64)
    if mode == "ceil":
        return np.ceil(positions).astype(np.int64)
    if mode == "round_prefer_floor":
        return np.ceil(positions - 0.5).astype(np.int64)
    return np.floor(positions + 0.5).astype(np.int64)
