"""How many weights of a layer are not zero, and how many of its groups keep more than N; in one pass over the weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.bake.conformity import nonzeros_per_group
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.nonzeros import nonzero_places

__all__ = ["Census", "take_census"]

# Weights looked at together: few enough that their bits stay in a core's cache, and that a file larger than the memory can
# be looked at where it lies on the disk.
_CHUNK = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Census:
    """Counts over a weight; `full` if every group keeps exactly N, so that the nonzeros are the mask."""

    weight_count: int
    nonzero_count: int
    group_count: int
    violation_count: int
    full: bool

    @property
    def density(self) -> float:
        """Share of nonzeros; 0 without weights."""
        return self.nonzero_count / max(self.weight_count, 1)


def take_census(weight: npt.NDArray[Any], *, axes: Sequence[int], pattern: NMPattern) -> Census:
    """Count along all `axes` of `weight`, of any dtype; a last group that is not full counts as filled up with zeros."""
    nonzero_count = group_count = violation_count = full_count = 0
    for part in _parts(np.atleast_1d(weight), axes, pattern.m):
        places = nonzero_places(part)
        nonzero_count += int(np.count_nonzero(places))
        for axis in axes:
            counts = nonzeros_per_group(places, axis=axis, size=pattern.m)
            group_count += counts.size
            violation_count += int(np.count_nonzero(counts > pattern.n))
            full_count += int(np.count_nonzero(counts == pattern.n))
    return Census(
        weight_count=weight.size,
        nonzero_count=nonzero_count,
        group_count=group_count,
        violation_count=violation_count,
        full=full_count == group_count,
    )


def _parts(weight: npt.NDArray[Any], axes: Sequence[int], size: int) -> Iterator[npt.NDArray[Any]]:
    """The weight in pieces along its first axis that split no group."""
    rows = max(1, _CHUNK // max(1, weight.size // max(1, len(weight))))
    if 0 in axes:
        rows = -(-rows // size) * size
    for start in range(0, len(weight), rows):
        yield weight[start : start + rows]
