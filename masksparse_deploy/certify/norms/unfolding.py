"""Bounds of a convolution from its kernel as a matrix: no frequencies, no size of the input; docs/bounds.md, section 1."""

import itertools
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import UNIT_ROUNDOFF, Deficits, largest_eigenvalue

__all__ = ["frobenius_bound", "spectral_norm", "unfolding_bound"]

Array = npt.NDArray[Any]

# A single matrix costs little: its bound is tighter than those of a grid, "exact" in docs/bounds.md.
_MATRIX_SLACK = 2.0**-27
# Power steps before an unfolding is taken to be small enough to be worth its norm.
_POWER_STEPS = 8


def frobenius_bound(kernel: Array) -> float:
    """sqrt(taps) ||K||_F of float64 (groups, out_channels, in_channels, *taps), the largest over groups; never below (c)."""
    squares = (kernel**2).sum(axis=tuple(range(1, kernel.ndim))).max()
    return math.sqrt(math.prod(kernel.shape[3:]) * float(squares)) * (1 + kernel.size * UNIT_ROUNDOFF)


def unfolding_bound(kernel: Array, *, limit: float = math.inf, deficits: Deficits | None = None) -> float:
    """sqrt(taps) times the smallest spectral norm of the unfoldings: bound (c).

    An unfolding is a matrix in which some of the kernel's spatial axes are joined to the output and the others to the input
    channels: four for two axes. Source: Singla and Feizi, "Fantastic four: differentiable and efficient bounds on singular
    values of convolution layers", ICLR 2021, theorem 1.

    Args:
        kernel: float64 (groups, out_channels, in_channels, *taps), stride 1; the largest norm over groups counts.
        limit: a bound that is known; an unfolding that cannot be below it is not evaluated.
        deficits: see `largest_eigenvalue`.

    Returns:
        The bound, infinity if none was evaluated.
    """
    groups, out_channels = kernel.shape[:2]
    taps = kernel.shape[3:]
    root = math.sqrt(math.prod(taps))
    smallest = math.inf
    axes = range(3, kernel.ndim)
    for with_outputs in itertools.product((False, True), repeat=len(taps)):
        rows = [axis for axis, chosen in zip(axes, with_outputs, strict=True) if chosen]
        columns = [axis for axis in axes if axis not in rows]
        height = out_channels * math.prod(kernel.shape[axis] for axis in rows)
        matrices = kernel.transpose(0, 1, *rows, 2, *columns).reshape(groups, height, -1)
        if root * _lower_bound(matrices, enough=min(limit, smallest) / root) < min(limit, smallest):
            smallest = min(smallest, root * spectral_norm(matrices, deficits=deficits))
    return smallest * (1 + 4 * UNIT_ROUNDOFF)


def spectral_norm(matrices: Array, *, deficits: Deficits | None = None) -> float:
    """An upper bound of the largest singular value of float64 matrices (count, rows, columns), exact to one part in 10^8."""
    tall = matrices if matrices.shape[1] >= matrices.shape[2] else matrices.swapaxes(1, 2)
    squared, _ = largest_eigenvalue([tall.swapaxes(1, 2) @ tall], slack=_MATRIX_SLACK, deficits=deficits)
    # docs/bounds.md: sums of `rows` products
    squared += 2 * (tall.shape[1] + 100) * UNIT_ROUNDOFF * float((tall**2).sum(axis=(1, 2)).max())
    return math.sqrt(squared) * (1 + 4 * UNIT_ROUNDOFF)


def _lower_bound(matrices: Array, *, enough: float) -> float:
    """A lower bound of the largest singular value, by power steps until it is `enough`."""
    x = np.random.default_rng(0).standard_normal((len(matrices), matrices.shape[2], 1))
    found = 0.0
    for _ in range(_POWER_STEPS):
        x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), np.finfo(float).tiny)
        y = matrices @ x
        found = max(found, float(np.linalg.norm(y, axis=1).max()))
        if found >= enough:
            break
        x = matrices.swapaxes(1, 2) @ y
    return found
