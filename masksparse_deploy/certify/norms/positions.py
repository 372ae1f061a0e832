"""Bound (d): the norm of a convolution of whose output only some positions are computed; docs/bounds.md, section 7."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.norms.eigenvalue import UNIT_ROUNDOFF

__all__ = ["STEPS", "overlaps", "perron_bound", "product_rounding"]

Array = npt.NDArray[Any]
Offset = tuple[int, ...]

# Steps of the power method, at most: its quotients bound the root at every step.
STEPS = 200
# How far above the root a bound is good enough, relative; 0.005 % of the norm.
_SLACK = 1e-4
# A sum of some dozens of numbers that are not negative, a product and a quotient for each: far below this, relative.
_ROUNDING = 1 + 1e-12


def overlaps(kernel: Array, *, strides: Sequence[int], dilations: Sequence[int], groups: int) -> Iterator[tuple[Offset, Array]]:
    """What two output positions that are an offset d apart have in common: C_d = sum of K_t K_t'^T over taps at the same input.

    One of d and -d for each pair, whose blocks are each other's transposes, beginning with 0.

    Args:
        kernel: float64 (out_channels, in_channels / groups, *taps).
        strides: one for each spatial axis.
        dilations: likewise.
        groups: of the convolution, whose blocks are independent of each other.

    Yields:
        The offset, and float64 (out_channels, out_channels / groups): the blocks of the groups below each other.
    """
    taps = kernel.shape[2:]
    grouped = kernel.reshape(groups, -1, *kernel.shape[1:])
    axes = [list(_shifts(*axis)) for axis in zip(taps, strides, dilations, strict=True)]
    for choice in itertools.product(*axes):
        offset, shift = (tuple(pair[place] for pair in choice) for place in (0, 1))
        if offset < (0,) * len(offset):
            continue
        # tap t of the one position reads what tap t - shift of the other does
        both = [grouped[(slice(None),) * 3 + _inside(taps, sign, shift)] for sign in (1, -1)]
        first, second = (part.reshape(*part.shape[:2], -1) for part in both)
        yield offset, (first @ second.swapaxes(1, 2)).reshape(kernel.shape[0], -1)


def _inside(lengths: Sequence[int], sign: int, shift: Sequence[int]) -> tuple[slice, ...]:
    """The indices i along each axis for which i - sign * shift is an index, too."""
    return tuple(slice(max(sign * d, 0), n + min(sign * d, 0)) for n, d in zip(lengths, shift, strict=True))


def _shifts(taps: int, stride: int, dilation: int) -> Iterator[tuple[int, int]]:
    """(offset of output positions, of taps) that read the same input along one axis: stride d = dilation shift."""
    for shift in range(-taps + 1, taps):
        if dilation * shift % stride == 0:
            yield dilation * shift // stride, shift


def product_rounding(kernel: Array) -> float:
    """By how much a computed C_d can be off, in the spectral norm: n terms each, by Cauchy and Schwarz n u ||K||_F^2."""
    return 2 * (math.prod(kernel.shape[1:]) + 10) * UNIT_ROUNDOFF * float((kernel**2).sum())


def perron_bound(kept: npt.NDArray[np.bool_], sizes: Mapping[Offset, float]) -> float:
    """An upper bound of the largest eigenvalue of the matrix over kept positions p, q with the entries sizes[p - q].

    For entries that are not negative and any v > 0 it is at most the largest (A v)_p / v_p (Collatz 1942, Wielandt 1950).

    Args:
        kept: bool, over the output's spatial axes.
        sizes: one of d and -d for each pair of offsets, 0 among them; what is not there is 0.
    """
    if not kept.any() or sizes[(0,) * kept.ndim] == 0:
        return 0.0
    v = kept.astype(np.float64)
    bound = math.inf
    pairs = list(_pairs(kept.shape, sizes))
    for _ in range(STEPS):
        applied = np.zeros_like(v)
        for size, here, there in pairs:
            applied[here] += size * v[there]
        applied *= kept
        bound = min(bound, float((applied[kept] / v[kept]).max()))
        if bound <= (1 + _SLACK) * float(np.vdot(v, applied) / np.vdot(v, v)):  # the quotient of Rayleigh, a lower bound
            break
        v = applied / applied.max()
    return bound * _ROUNDING


def _pairs(
    lengths: Sequence[int], sizes: Mapping[Offset, float]
) -> Iterator[tuple[float, tuple[slice, ...], tuple[slice, ...]]]:
    """(entry, positions p, positions q) for which p - q is an offset."""
    for offset, size in sizes.items():
        if all(abs(d) < n for d, n in zip(offset, lengths, strict=True)):
            for sign in (1, -1) if any(offset) else (1,):
                yield size, _inside(lengths, sign, offset), _inside(lengths, -sign, offset)
