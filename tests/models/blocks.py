"""1xN masks by L1 norm, and a fault in them."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.blocks import BlockPattern

__all__ = ["block_keep", "magnitude_keep", "put_back_one_weight"]


def block_keep(weight: npt.NDArray[np.floating], pattern: BlockPattern) -> npt.NDArray[np.bool_]:
    """keep, of the shape of `weight` (out_channels, in_channels, ...): the blocks with the largest L1 norms."""
    groups = np.abs(weight).reshape(len(weight) // pattern.n, pattern.n, weight.shape[1], -1)
    return pattern.expand(pattern.keep_largest(groups.sum(axis=(1, 3))), weight.shape)


def magnitude_keep(weight: npt.NDArray[np.floating], pattern: Pattern) -> npt.NDArray[np.bool_]:
    """keep by magnitude, for a pattern of any kind, along the input channels on axis 1."""
    if isinstance(pattern, BlockPattern):
        return block_keep(weight, pattern)
    return pattern.keep_largest(np.abs(weight), group_axis=1)


def put_back_one_weight(weight: npt.NDArray[np.generic]) -> npt.NDArray[np.generic]:
    """A copy with 1 in place of the first weight, output channels first, of a block of the first group that holds nothing."""
    changed = weight.copy()
    kernels = changed.reshape(*changed.shape[:2], -1)
    empty = np.flatnonzero(~(kernels[:2] != 0).any(axis=(0, 2)))
    kernels[0, empty[0], 0] = 1
    return changed
