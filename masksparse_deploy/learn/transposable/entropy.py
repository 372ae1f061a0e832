"""Transposable masks by entropy-regularised transport: all tiles at once, in logarithms, then rounded."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.learn.transposable.greedy import keep_greedily
from masksparse_deploy.learn.transposable.swaps import saturate_by_swaps

__all__ = ["keep_by_entropy", "regularised_plan"]

# Those of TSENOR: the reciprocal of the regularisation, in units of the tile's largest magnitude, and the projections made.
_SHARPNESS = 100.0
_STEPS = 300
# Weights that are worked on at once: few enough to stay in the processor's cache.
_BLOCK = 2**16


def keep_by_entropy(magnitudes: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.bool_]:
    """Round the regularised plan greedily and repair it by swaps, as X. Meng et al., "TSENOR" (2025) do.

    Args:
        magnitudes: (tiles, m, m), not negative.
        n: kept in every row and column at most.

    Returns:
        keep, bool (tiles, m, m).
    """
    keep = np.empty(magnitudes.shape, dtype=np.bool_)
    block = max(1, _BLOCK // magnitudes.shape[-1] ** 2)
    for first in range(0, len(magnitudes), block):
        part = magnitudes[first : first + block]
        keep[first : first + block] = saturate_by_swaps(keep_greedily(regularised_plan(part, n), n), part, n)
    return keep


def regularised_plan(magnitudes: npt.NDArray[np.floating], n: int, *, steps: int = _STEPS) -> npt.NDArray[np.float32]:
    """The logarithm of the plan P, rows and columns of sum n and entries at most 1, with the largest <P, W> + entropy(P) / tau.

    Dykstra's projections onto the rows, the columns and the cap in turn; the cap keeps a memory of what it cut.

    Args:
        magnitudes: (tiles, m, m), not negative.
        n: the sum of every row and column.
        steps: rounds of projections.

    Returns:
        log P, float32 (tiles, m, m), as far as the steps have come.
    """
    largest = magnitudes.max(axis=(1, 2), keepdims=True)
    scaled = np.divide(magnitudes, largest, out=np.zeros_like(magnitudes), where=largest > 0)
    # Tiles last: sums over rows and columns are then sums of long vectors.
    plan = np.ascontiguousarray((_SHARPNESS * scaled).astype(np.float32).transpose(1, 2, 0))
    cut = np.zeros_like(plan)
    for _ in range(steps):
        for axis in (1, 0):
            plan -= _log_sum(plan, axis) - np.float32(np.log(n))
        cut += plan
        np.minimum(cut, 0, out=plan)
        np.maximum(cut, 0, out=cut)
    return np.ascontiguousarray(plan.transpose(2, 0, 1))


def _log_sum(logarithms: npt.NDArray[np.float32], axis: int) -> npt.NDArray[np.float32]:
    """The logarithm of the sum of the exponentials along an axis, which is kept."""
    largest = logarithms.max(axis=axis, keepdims=True)
    result: npt.NDArray[np.float32] = largest + np.log(np.exp(logarithms - largest).sum(axis=axis, keepdims=True))
    return result
