"""Operator norms of convolutions and matrices, by plain singular values of what docs/bounds.md, section 1, says."""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["Geometry", "Norm", "convolution_norm", "matrix_norm"]

Array = npt.NDArray[Any]

# The padded grid stands in for the N x N grid while it has at most this many times its cells.
_PADDED_GRID_FACTOR = 2
# How far a recorded norm may be above the checker's, by docs/bounds.md: a norm on a frequency grid by 0.01 %, that of a matrix
# by one part in 10^8, twice that for the square roots and the float64 of both sides.
_SLACK = {"grid": 1e-4, "padded grid": 1e-4, "unfolding": 2e-8, "frobenius": 2e-8, "matrix": 2e-8}


@dataclass(frozen=True, kw_only=True)
class Norm:
    """The smallest of the documented bounds.

    Attributes:
        value: in float64, not enlarged.
        methods: the bounds of docs/bounds.md that come to it, or so close that a certificate may name them instead.
        slack: how far above `value` a certificate's may be, relative.
    """

    value: float
    methods: frozenset[str]
    slack: float


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a kernel is applied; all tuples have one entry for each spatial axis.

    Attributes:
        strides: as in ONNX Conv.
        dilations: as in ONNX Conv.
        padded: lengths of the input with its padding.
        groups: as in ONNX Conv.
        grid: N of bound (a).
    """

    strides: Sequence[int]
    dilations: Sequence[int]
    padded: Sequence[int]
    groups: int
    grid: int


def matrix_norm(matrix: Array) -> Norm:
    """The largest singular value of a float64 matrix."""
    return _smallest({"matrix": _largest_singular_value(matrix)})


def convolution_norm(kernel: Array, geometry: Geometry) -> Norm:
    """The documented bound for a float64 kernel (out_channels, in_channels / groups, one length for each spatial axis)."""
    if not kernel.any():
        return _smallest({"matrix": 0.0})
    of_groups = [_bounds(*_with_stride_one(part, geometry), geometry) for part in np.split(kernel, geometry.groups)]
    return _smallest({name: max(bounds[name] for bounds in of_groups) for name in of_groups[0]})


def _smallest(bounds: Mapping[str, float]) -> Norm:
    value = min(bounds.values())
    methods = frozenset(name for name, bound in bounds.items() if bound <= value * (1 + max(_SLACK[other] for other in bounds)))
    return Norm(value=value, methods=methods, slack=max(_SLACK[name] for name in methods))


def _bounds(kernel: Array, shrink: Sequence[int], geometry: Geometry) -> Mapping[str, float]:
    """The bounds that apply to the kernel of a group, of stride 1 on an input whose lengths are divided by `shrink`."""
    taps = kernel.shape[2:]
    if math.prod(taps) == 1:
        return {"matrix": _largest_singular_value(kernel.reshape(kernel.shape[:2]))}
    bounds = {"unfolding": _unfolding_bound(kernel), "frobenius": math.sqrt(math.prod(taps) * float(np.square(kernel).sum()))}
    cells = [1 if count == 1 else max(geometry.grid, 2 * count) for count in taps]
    padded = [1 if t == 1 else max(t, -(-n // by)) for t, n, by in zip(taps, geometry.padded, shrink, strict=True)]
    if math.prod(padded) <= _PADDED_GRID_FACTOR * math.prod(cells):
        bounds["padded grid"] = _largest_on_grid(kernel, padded)
    else:
        divisor = math.prod(math.cos(math.pi * (count - 1) / (2 * n)) for count, n in zip(taps, cells, strict=True))
        bounds["grid"] = _largest_on_grid(kernel, cells) / divisor
    return bounds


def _with_stride_one(kernel: Array, geometry: Geometry) -> tuple[Array, list[int]]:
    """The kernel of the same operator on space-to-depth blocks, and the blocks' lengths."""
    shrink = []
    for axis, (stride, dilation) in enumerate(zip(geometry.strides, geometry.dilations, strict=True), start=2):
        common = math.gcd(stride, dilation)
        stride, dilation = stride // common, dilation // common
        shrink.append(common * (dilation if stride == 1 else stride))
        if stride == 1:
            continue
        spread = np.zeros((*kernel.shape[:axis], (kernel.shape[axis] - 1) * dilation + 1, *kernel.shape[axis + 1 :]))
        np.moveaxis(spread, axis, 0)[::dilation] = np.moveaxis(kernel, axis, 0)
        length = -(-spread.shape[axis] // stride)
        phases = []
        for phase in range(stride):
            taps = np.moveaxis(spread, axis, 0)[phase::stride]
            missing = [(0, length - len(taps)), *[(0, 0)] * (taps.ndim - 1)]
            phases.append(np.moveaxis(np.pad(taps, missing), 0, axis))
        kernel = np.concatenate(phases, axis=1)
    return kernel, shrink


def _largest_on_grid(kernel: Array, cells: Sequence[int]) -> float:
    """The largest singular value of the Fourier symbol on a grid; one frequency of the last axis at a time, to save memory."""
    largest = 0.0
    positions = np.arange(kernel.shape[-1])
    # the symbols of a real kernel at w and -w are conjugate: half of the frequencies will do
    for frequency in range(cells[-1] // 2 + 1):
        column = kernel @ np.exp(-2j * np.pi * frequency * positions / cells[-1])
        symbols = np.fft.fftn(column, s=cells[:-1], axes=range(2, column.ndim)) if len(cells) > 1 else column
        matrices = np.moveaxis(symbols.reshape(*symbols.shape[:2], -1), 2, 0)
        largest = max(largest, float(np.linalg.svd(matrices, compute_uv=False).max()))
    return largest


def _unfolding_bound(kernel: Array) -> float:
    """sqrt(number of taps) times the smallest norm of the unfoldings, which put each spatial axis to either side."""
    axes = range(2, kernel.ndim)
    norms = []
    for beside_output in itertools.product((False, True), repeat=len(axes)):
        rows = [0, *(axis for axis, chosen in zip(axes, beside_output, strict=True) if chosen)]
        columns = [1, *(axis for axis, chosen in zip(axes, beside_output, strict=True) if not chosen)]
        height = math.prod(kernel.shape[axis] for axis in rows)
        norms.append(_largest_singular_value(kernel.transpose(*rows, *columns).reshape(height, -1)))
    return math.sqrt(math.prod(kernel.shape[2:])) * min(norms)


def _largest_singular_value(matrix: Array) -> float:
    return float(np.linalg.svd(matrix, compute_uv=False)[0])
