"""Weights as M x M tiles: one for every M output channels, M input channels and place in the kernel."""

from typing import TypeVar

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError

__all__ = ["from_tiles", "tiles_of"]

_Scalar = TypeVar("_Scalar", bound=np.generic)


def tiles_of(weight: npt.NDArray[_Scalar], m: int) -> npt.NDArray[_Scalar]:
    """Cut a weight into tiles.

    The matrix of a convolution as a product is (out_channels, kernel_h * kernel_w * in_channels) with the input channels
    fastest, so that with M dividing both channel counts every tile lies within one place of the kernel.

    Args:
        weight: (out_channels, in_channels, ...) of a convolution, (out_features, in_features) of a linear layer.
        m: rows and columns of a tile.

    Returns:
        A copy, (tiles, m, m): rows are output channels, columns are input channels.

    Raises:
        UsageError: fewer than two axes, or channels that are no multiple of m.
    """
    if weight.ndim < 2:
        raise UsageError(
            f"a weight of shape {weight.shape} has no tiles: it needs output and input channels, two axes at least"
        )
    for axis, channels in enumerate(("output channels", "input channels")):
        if weight.shape[axis] == 0 or weight.shape[axis] % m:
            raise UsageError(
                f"a weight of shape {weight.shape} has {weight.shape[axis]} {channels}, not a multiple of {m}: transposable "
                f"masks need {m} x {m} tiles; leave the layer dense or choose an M that divides both channel counts"
            )
    split = weight.reshape(weight.shape[0] // m, m, weight.shape[1] // m, m, -1)
    return np.ascontiguousarray(split.transpose(0, 2, 4, 1, 3)).reshape(-1, m, m)


def from_tiles(tiles: npt.NDArray[_Scalar], shape: tuple[int, ...]) -> npt.NDArray[_Scalar]:
    """Put the tiles of a weight of the given shape together again, the inverse of `tiles_of`."""
    m = tiles.shape[-1]
    split = tiles.reshape(shape[0] // m, shape[1] // m, -1, m, m)
    return np.ascontiguousarray(split.transpose(0, 3, 1, 4, 2)).reshape(shape)
