"""Random convolutions of one to three dimensions, small enough for the operator to be written out as a matrix."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.linalg import block_diag

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """A convolution with an input size; `pads` has (before, after) for each spatial axis."""

    kernel: Array
    size: tuple[int, ...]
    strides: tuple[int, ...]
    pads: tuple[tuple[int, int], ...]
    dilations: tuple[int, ...]
    groups: int = 1

    @property
    def padded_size(self) -> tuple[int, ...]:
        return tuple(n + before + after for n, (before, after) in zip(self.size, self.pads, strict=True))

    def matrix(self) -> Array:
        """The operator: one column for each input element, one row for each output element.

        It is the sum over taps of (channels x channels) times, along each axis, the 0/1 matrix that says which input an output
        reads. Nothing here is shared with the package.
        """
        parts = np.split(self.kernel, self.groups)
        taps = self.kernel.shape[2:]
        full = np.zeros((len(self.kernel), self.kernel.shape[1] * self.groups, *taps))
        for index in np.ndindex(*taps):
            full[(slice(None), slice(None), *index)] = block_diag(*(part[(slice(None), slice(None), *index)] for part in parts))
        letters = iter("abcdefghi")
        operands, kernel_axes, rows, columns = [], "", "O", "I"
        for axis, count in enumerate(taps):
            tap, out, source = next(letters), next(letters), next(letters)
            operands += [self._reads(axis, count), [tap, out, source]]
            kernel_axes, rows, columns = kernel_axes + tap, rows + out, columns + source
        arrays, names = operands[::2], ["".join(name) for name in operands[1::2]]
        tensor = np.einsum(f"OI{kernel_axes},{','.join(names)}->{rows}{columns}", full, *arrays, optimize=True)
        matrix: Array = tensor.reshape(len(full) * math.prod(tensor.shape[1 : 1 + len(taps)]), -1)
        return matrix

    def _reads(self, axis: int, taps: int) -> Array:
        """(taps, outputs, inputs): 1 where an output reads an input through a tap."""
        extent = (taps - 1) * self.dilations[axis] + 1
        outputs = (self.padded_size[axis] - extent) // self.strides[axis] + 1
        reads = np.zeros((taps, outputs, self.size[axis]))
        for tap in range(taps):
            for out in range(outputs):
                source = out * self.strides[axis] + tap * self.dilations[axis] - self.pads[axis][0]
                if 0 <= source < self.size[axis]:
                    reads[tap, out, source] = 1
        return reads


def random_case(generator: np.random.Generator) -> Case:
    """Any of one to three spatial axes, with every kind of geometry."""
    axes = int(generator.choice([1, 2, 2, 3]))
    largest = {1: 7, 2: 4, 3: 2}[axes]
    taps = generator.integers(1, largest + 1, axes)
    dilations, strides = generator.integers(1, 4, axes), generator.integers(1, 4, axes)
    pads = generator.integers(0, 3, (axes, 2))
    extents = (taps - 1) * dilations + 1
    smallest = np.maximum(1, extents - pads.sum(axis=1))
    size = smallest + generator.integers(0, {1: 9, 2: 4, 3: 2}[axes], axes)
    groups = int(generator.choice([1, 1, 2, 3]))
    kernel = generator.standard_normal((groups * int(generator.integers(1, 3)), int(generator.integers(1, 4)), *taps))
    kind = generator.integers(4)
    if kind == 0:
        kernel = np.abs(kernel)  # the norm is then at frequency zero, where zero padding matters most
    elif kind == 1:
        kernel *= generator.random(kernel.shape) < 0.5  # as after masking
    return Case(
        kernel=kernel * 10.0 ** generator.integers(-3, 4),
        size=tuple(int(n) for n in size),
        strides=tuple(int(s) for s in strides),
        pads=tuple((int(before), int(after)) for before, after in pads),
        dilations=tuple(int(d) for d in dilations),
        groups=groups,
    )


def same_size_case(generator: np.random.Generator) -> Case:
    """A 3x3 convolution padded to keep its size, as in CNNs."""
    out_channels, in_channels, length = (int(value) for value in generator.integers((1, 1, 3), (3, 3, 7)))
    kernel = generator.standard_normal((out_channels, in_channels, 3, 3))
    return Case(kernel=kernel, size=(length, length), strides=(1, 1), pads=((1, 1), (1, 1)), dilations=(1, 1))


def power_iteration(matrix: Array, steps: int = 20) -> float:
    """A lower bound of the largest singular value, and only that."""
    x = np.random.default_rng(0).standard_normal(matrix.shape[1])
    for _ in range(steps):
        y = matrix.T @ (matrix @ x)
        if not y.any():
            return 0.0
        x = y / np.linalg.norm(y)
    return float(np.linalg.norm(matrix @ x))
