"""The mask that the magnitudes of a weight ask for, before, after or in the midst of training."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.learn.blocks.scores import block_norms
from masksparse_deploy.learn.eligibility import GROUP_AXIS
from masksparse_deploy.learn.transposable.solve import Solver, solve_tiles
from masksparse_deploy.learn.transposable.tiles import from_tiles, tiles_of

__all__ = ["choose_mask"]


def choose_mask(magnitude: npt.NDArray[np.float32], pattern: Pattern, solver: Solver) -> npt.NDArray[np.bool_]:
    """The N largest of every group, or the largest blocks; with a transposable pattern, what `solver` keeps of every tile.

    Tiles in which an approximation keeps fewer than N in some row are solved exactly: a mask set holds exact patterns only.

    Args:
        magnitude: |weight|, float32 (out_channels, in_channels, ...), finite.
        pattern: both channel counts are multiples of M if it is transposable; out_channels of N if it is 1xN.
        solver: see `solve_tiles`; not looked at for other patterns.

    Returns:
        keep, bool, the shape of `magnitude`.
    """
    if isinstance(pattern, BlockPattern):
        return pattern.expand(pattern.keep_largest(block_norms(magnitude, pattern.n)), magnitude.shape)
    if not pattern.transposable:
        return pattern.keep_largest(magnitude, group_axis=GROUP_AXIS)
    tiles = tiles_of(magnitude, pattern.m)
    solution = solve_tiles(tiles, pattern.n, solver=solver)
    keep, wanting = solution.keep, ~solution.saturated
    if wanting.any():
        keep[wanting] = solve_tiles(tiles[wanting], pattern.n, solver="exact").keep
    return from_tiles(keep, magnitude.shape)
