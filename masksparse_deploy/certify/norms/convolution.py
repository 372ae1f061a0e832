"""The smallest of the bounds of one convolution without stride and dilation, and what shows that it is not too small."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import Deficits, singular_value_from_below
from masksparse_deploy.certify.norms.symbol import grid_maximum, grid_slack, symbol_at
from masksparse_deploy.certify.norms.unfolding import frobenius_bound, spectral_norm, unfolding_bound

__all__ = ["Evaluated", "evaluate", "is_plausible"]

Array = npt.NDArray[Any]

METHODS = ("matrix", "padded grid", "grid", "unfolding", "frobenius")
# The padded grid costs one factorisation a cell: it is used up to this many times the cells of the N x N grid.
_PADDED_GRID_FACTOR = 2


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """A bound, its name in docs/bounds.md, and where the symbol's norm is closest to it: a cell of a grid and a group."""

    value: float
    method: str
    cells: tuple[int, ...]
    cell: tuple[int, ...]
    group: int


def evaluate(
    kernel: Array, *, shrink: Sequence[int], padded_size: Sequence[int] | None, grid: int, deficits: Deficits | None
) -> Evaluated:
    """The smallest bound of a convolution with stride 1.

    Args:
        kernel: float64 (groups, out_channels, in_channels, *taps), its largest element about 1.
        shrink: by how much the input is smaller than `padded_size` along each spatial axis, see `polyphase`.
        padded_size: as in `convolution_norm`.
        grid: N of bound (a).
        deficits: see `largest_eigenvalue`.
    """
    taps = kernel.shape[3:]
    nowhere = (0,) * len(taps)
    if not kernel.any() or set(taps) == {1}:
        value = spectral_norm(kernel.reshape(*kernel.shape[:2], -1), deficits=deficits)
        return Evaluated(value=value, method="matrix", cells=(1,) * len(taps), cell=nowhere, group=0)
    cells = tuple(1 if t == 1 else max(grid, 2 * t) for t in taps)
    slack, method = grid_slack(taps, cells), "grid"
    if padded_size is not None:
        padded = tuple(1 if t == 1 else max(t, math.ceil(n / s)) for n, s, t in zip(padded_size, shrink, taps, strict=True))
        # (b) is never above (a), so it replaces (a) where it does not cost more
        if math.prod(padded) <= _PADDED_GRID_FACTOR * math.prod(cells):
            cells, slack, method = padded, 1.0, "padded grid"
    maximum = grid_maximum(kernel, cells=cells, deficits=deficits)
    bounds = [(slack * maximum.value, method), (frobenius_bound(kernel), "frobenius")]
    # the most expensive last, and only what a few power steps leave a chance to be the smallest
    bounds.append((unfolding_bound(kernel, limit=min(bounds)[0], deficits=deficits), "unfolding"))
    value, method = min(bounds)
    return Evaluated(value=value, method=method, cells=cells, cell=maximum.cell, group=maximum.group)


def is_plausible(known: Evaluated, kernel: Array) -> bool:
    """Whether a bound that was read from a file can be one of `kernel`, by a quick lower bound: it is not proved anew.

    Every bound is at least the symbol's norm at the frequency it was found at, bound (a) by the factor of its grid, and none
    needs to be above ||K||_F sqrt(taps).
    """
    taps = kernel.shape[3:]
    if not len(known.cells) == len(known.cell) == len(taps) or not 0 <= known.group < len(kernel):
        return False
    if any(n < t or not 0 <= place < n for place, n, t in zip(known.cell, known.cells, taps, strict=True)):
        return False
    lower = singular_value_from_below(symbol_at(kernel[known.group], cell=known.cell, cells=known.cells))
    if known.method == "grid":
        lower *= grid_slack(taps, known.cells)
    # what is computed in another order differs by far less than 1e-9
    return known.method in METHODS and lower * (1 - 1e-9) <= known.value <= frobenius_bound(kernel) * (1 + 1e-9)
