"""How a weight lies in 1xN blocks: which of them hold anything; read group by group, so that no large copy is made."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph.nonzeros import nonzero_places

__all__ = ["BlockCounts", "block_misfit", "count_blocks"]


@dataclass(frozen=True, eq=False, kw_only=True)
class BlockCounts:
    """What a weight holds.

    Attributes:
        used: bool (groups, in_channels), whether a block holds anything.
        nonzero_count: weights that are not zero.
        group_count: what violations are counted over: the groups of output channels; the layer as one if not uniform.
        violation_count: how many of them use more blocks than the pattern keeps.
        full: whether each uses as many as the pattern keeps, so that the blocks are the mask.
    """

    used: npt.NDArray[np.bool_]
    nonzero_count: int
    group_count: int
    violation_count: int
    full: bool


def block_misfit(shape: tuple[int, ...], pattern: BlockPattern, *, output_axis: int, group_axis: int) -> str:
    """Why a weight cannot have the pattern at all, in words; empty if it can."""
    if len(shape) < 2 or output_axis == group_axis or 0 in shape:
        return f"a weight {shape} has no blocks of output and input channels"
    outputs = shape[output_axis]
    if outputs % pattern.n:
        return f"{outputs} output channel{'' if outputs == 1 else 's'}: not a multiple of {pattern.n}"
    return ""


def count_blocks(weight: npt.NDArray[Any], pattern: BlockPattern, *, output_axis: int, group_axis: int) -> BlockCounts:
    """Look into every block of a weight of any dtype that `block_misfit` has nothing against."""
    rows = np.moveaxis(weight, (output_axis, group_axis), (0, 1))
    groups = rows.shape[0] // pattern.n
    used = np.empty((groups, rows.shape[1]), dtype=np.bool_)
    nonzero_count = 0
    for group in range(groups):
        places = nonzero_places(np.ascontiguousarray(rows[group * pattern.n : (group + 1) * pattern.n]))
        used[group] = places.reshape(pattern.n, rows.shape[1], -1).any(axis=(0, 2))
        nonzero_count += int(np.count_nonzero(places))
    counts = used.sum(axis=1) if pattern.uniform else used.sum(keepdims=True)
    kept = pattern.kept_channels(rows.shape[1]) if pattern.uniform else pattern.kept_blocks(rows.shape[0], rows.shape[1])
    return BlockCounts(
        used=used,
        nonzero_count=nonzero_count,
        group_count=counts.size,
        violation_count=int(np.count_nonzero(counts > kept)),
        full=bool((counts == kept).all()),
    )
