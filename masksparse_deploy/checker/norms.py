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
# Singular values in float64 are off by a modest multiple of 2^-53 times the largest; two bounds closer than this are equal.
_EQUAL = 1e-9


@dataclass(frozen=True, kw_only=True)
class Norm:
    """A bound as float64 gives it, not enlarged, and the names of the bounds of docs/bounds.md that come to it."""

    value: float
    methods: frozenset[str]


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
    return Norm(value=_largest_singular_value(matrix), methods=frozenset({"matrix"}))


def convolution_norm(kernel: Array, geometry: Geometry) -> Norm:
    """The documented bound for a float64 kernel (out_channels, in_channels / groups, one length for each spatial axis)."""
    of_groups = [_group_norm(part, geometry) for part in np.split(kernel, geometry.groups)]
    value = max(norm.value for norm in of_groups)
    largest = (norm.methods for norm in of_groups if norm.value >= value * (1 - _EQUAL))
    return Norm(value=value, methods=frozenset().union(*largest))


def _group_norm(kernel: Array, geometry: Geometry) -> Norm:
    if not kernel.any():
        return Norm(value=0.0, methods=frozenset({"matrix"}))
    kernel, shrink = _with_stride_one(kernel, geometry)
    taps = kernel.shape[2:]
    if math.prod(taps) == 1:
        return matrix_norm(kernel.reshape(kernel.shape[:2]))
    bounds = _bounds(kernel, [-(-length // by) for length, by in zip(geometry.padded, shrink, strict=True)], geometry.grid)
    value = min(bounds.values())
    return Norm(value=value, methods=frozenset(name for name, bound in bounds.items() if bound <= value * (1 + _EQUAL)))


def _bounds(kernel: Array, padded: Sequence[int], grid: int) -> Mapping[str, float]:
    """Bounds (a) or (b), and (c), of a kernel of stride 1, by name; `padded` are the lengths of its padded input."""
    taps = kernel.shape[2:]
    cells = [1 if count == 1 else max(grid, 2 * count) for count in taps]
    padded = [1 if count == 1 else max(count, length) for count, length in zip(taps, padded, strict=True)]
    bounds = {"unfolding": _unfolding_bound(kernel)}
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
