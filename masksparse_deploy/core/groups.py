"""Views of a tensor as groups of M consecutive elements along one axis."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError

__all__ = ["groups_of", "ungroup"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def groups_of(array: npt.NDArray[_Scalar], *, axis: int, size: int) -> npt.NDArray[_Scalar]:
    """View `array` as groups: the axis goes last and is split into (shape[axis] // size, size).

    For a kernel (out_channels, in_channels, kernel_h, kernel_w), axis 1 and size 4 the result has the shape
    (out_channels, kernel_h, kernel_w, in_channels // 4, 4): one group per output channel and kernel position.

    Raises:
        UsageError: the axis does not exist or its length is not a multiple of `size`.
    """
    if not 0 <= axis < array.ndim:
        raise UsageError(f"group axis {axis} does not exist in an array of shape {array.shape}")
    length = array.shape[axis]
    if length == 0 or length % size != 0:
        raise UsageError(f"axis {axis} of shape {array.shape} has {length} elements: not a multiple of {size}")
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(*moved.shape[:-1], length // size, size)


def ungroup(groups: npt.NDArray[Any], *, axis: int) -> npt.NDArray[Any]:
    """The inverse of `groups_of` for the same axis."""
    return np.moveaxis(groups.reshape(*groups.shape[:-2], -1), -1, axis)
