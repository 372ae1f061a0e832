"""Views of a tensor as groups of M consecutive elements along one axis."""

from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError

__all__ = ["count_kept", "filled", "members_of"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def members_of(array: npt.NDArray[_Scalar], *, axis: int, size: int) -> npt.NDArray[_Scalar]:
    """View `array` by place within the group: element i holds the i-th member of every group of `size` along `axis`.

    For a kernel (out_channels, in_channels, kernel_h, kernel_w), axis 1 and size 4 the result has the shape
    (4, out_channels, in_channels // 4, kernel_h, kernel_w): one group per output channel and kernel position. Writing to the
    view of a contiguous array writes to the array.

    Raises:
        UsageError: the axis does not exist or its length is not a multiple of `size`.
    """
    length = _checked_length(array, axis, size)
    return np.moveaxis(array.reshape(*array.shape[:axis], length // size, size, *array.shape[axis + 1 :]), axis + 1, 0)


def filled(array: npt.NDArray[_Scalar], *, axis: int, size: int, fill: object) -> npt.NDArray[_Scalar]:
    """`array` with `fill` appended along `axis` up to the next multiple of `size`; `array` itself where nothing is missing.

    Raises:
        UsageError: the axis does not exist.
    """
    _check_axis(array, axis)
    missing = -array.shape[axis] % size
    if not missing:
        return array
    widths = [(0, missing if index == axis else 0) for index in range(array.ndim)]
    return np.pad(array, widths, constant_values=fill)  # type: ignore[call-overload, no-any-return]


def count_kept(keep: npt.NDArray[np.bool_], *, axis: int, size: int) -> npt.NDArray[np.uint8]:
    """How many weights every group keeps, uint8; size <= 255. A last group that is not full counts like the others.

    The shape is that of one member of `members_of`, with ceil(shape[axis] / size) groups along the axis.

    Raises:
        UsageError: the axis does not exist or has no elements.
    """
    members = members_of(filled(keep, axis=axis, size=size, fill=False), axis=axis, size=size)
    counts = np.zeros(members.shape[1:], dtype=np.uint8)
    for member in members:
        counts += member
    return counts


def _checked_length(array: npt.NDArray[Any], axis: int, size: int) -> int:
    _check_axis(array, axis)
    length: int = array.shape[axis]
    if length == 0 or length % size != 0:
        raise UsageError(f"axis {axis} of shape {array.shape} has {length} elements: not a multiple of {size}")
    return length


def _check_axis(array: npt.NDArray[Any], axis: int) -> None:
    if not 0 <= axis < array.ndim:
        raise UsageError(f"group axis {axis} does not exist in an array of shape {array.shape}")
