"""How far an INT8 kernel may be from the exact output of its file, for every output element.

The file says: integers times scales, a convolution of these real numbers, a bias, perhaps a residual addition and an
activation, then the nearest number of the output's grid. All but that last step is computed in float64, with a bound of how far
the kernel's real number may be from it; the last step moves it by half a step of the grid at most, and clamps it at the ends.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.evaluate import absolute_layer, apply_layer
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.validate.arithmetic import Arithmetic
from masksparse_deploy.validate.rounding import UNIT_FP32, UNIT_FP64, along_channels, growth, kept_terms
from masksparse_deploy.validate.units import Grid, Unit

__all__ = ["Output", "exact_output", "int8_reference", "overflow", "tail_slope"]

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]

_LARGEST_INT32 = 2**31 - 1
_SMALLEST_NORMAL = 2.0**-126
# Roundings of an integer kernel from its sum on: the sum to FP32, two for the product of its scales and the division by that of
# the output, the multiplication, the bias if it is added in FP32, the result. Two more stand for x and the weight, integers
# times scales, which the reference reads as rounded to FP32.
_ROUNDINGS = 8
# An operator behind the layer: its own result, and a factor that the kernel may have put into what it adds.
_TAIL = 2
# Division by the grid's step, or its reciprocal and a product with it.
_DIVISION = 2


@dataclass(frozen=True, eq=False, kw_only=True)
class Output:
    """What a unit gives for one input: exactly, and how far its kernel may be from that.

    Attributes:
        exact: float64, before it is put on the output's grid.
        error: bound of |kernel's real number - exact|, elementwise: arithmetic and the bias on its own grid.
        grid: what the output is rounded to; None if it stays in floating point.
    """

    exact: Values
    error: Values
    grid: Grid | None

    @property
    def clamped(self) -> Values:
        """`exact` as far as the grid reaches."""
        return self.exact if self.grid is None else self.grid.clamp(self.exact)

    @property
    def allowed(self) -> Values:
        """Bound of |kernel's output - clamped|.

        Rounding to a level and clamping commute; the first moves a number by half a step at most, the second takes no two of
        them further apart.
        """
        return self.error if self.grid is None else self.error + self.grid.step / 2

    @property
    def nearest(self) -> Values:
        """What an exact kernel gives: `exact` itself, or the nearest number of the grid."""
        return self.exact if self.grid is None else self.grid.nearest(self.exact)

    @property
    def moved(self) -> Values:
        """Bound of |kernel's output - nearest|: the error, or the levels that it may lead to, and how these are shown."""
        if self.grid is None:
            return self.error
        nearest = self.nearest
        highest, lowest = self.grid.nearest(self.exact + self.error), self.grid.nearest(self.exact - self.error)
        return np.maximum(highest - nearest, nearest - lowest) + UNIT_FP32 * np.maximum(np.abs(highest), np.abs(lowest))


def int8_reference(unit: Unit, x: Array, others: Mapping[str, Array], arithmetic: Arithmetic) -> Output:
    """Evaluate a unit exactly, and bound what a kernel makes of it.

    A kernel that adds up integers does so exactly (see `overflow`), scales the sum in FP32 and adds the bias, which it may have
    put on the INT32 grid of the products: off by half of that grid's step. A kernel that computes with the dequantized numbers
    in FP32 also rounds in its sums, as in `rounding_bound`. With n kept terms, v the unit of the sums (0 for integers),
    u = 2^-24 and h the half step of the biases, behind the layer

        error <= ((1 + v)^(n + 2) (1 + u)^8 - 1) (|W| * |x| + |b| + h) + h.

    What follows keeps it, as Relu and Clip do, or adds two roundings of its own; dividing by the output's step is two more. The
    other tensors read are the engine's own.

    Args:
        unit: of the sparse file.
        x: the layer's input as the engine had it, (count, ...), on its grid.
        others: the tensors of `unit.others`, as the engine had them.
        arithmetic: of the kernel.
    """
    layer = unit.layer
    magnitude = absolute_layer(layer, x)
    kept = kept_terms(layer) + 2
    sums = 1 + growth(kept, arithmetic.sum_unit) + 2 * growth(kept, UNIT_FP64)
    factor = along_channels(layer, sums * (1 + growth(np.array(_ROUNDINGS), UNIT_FP32)) - 1, magnitude.ndim)
    half = along_channels(layer, _bias_halfstep(unit), magnitude.ndim)
    flushed = along_channels(layer, 2 * (kept + _ROUNDINGS) * _SMALLEST_NORMAL, magnitude.ndim)
    error = factor * (magnitude + half) + half + flushed
    value = np.asarray(apply_layer(layer, x), dtype=np.float64)
    for node in unit.tail:
        inputs = _inputs(unit, node, value, others)
        error = _error_behind(node, inputs, error)
        value = np.asarray(apply_node(node, inputs, batch=None), dtype=np.float64)
    if unit.grid is not None:
        # what DequantizeLinear shows of a number on the grid is rounded to FP32, too
        error = error + growth(np.array(_DIVISION + 1), UNIT_FP32) * (np.abs(value) + error)
    return Output(exact=value, error=error, grid=unit.grid)


def exact_output(unit: Unit, x: Array, others: Mapping[str, Array]) -> Output:
    """As `int8_reference`, of an exact kernel in any precision: its error is 0."""
    value = np.asarray(apply_layer(unit.layer, x), dtype=np.float64)
    for node in unit.tail:
        value = np.asarray(apply_node(node, _inputs(unit, node, value, others), batch=None), dtype=np.float64)
    return Output(exact=value, error=np.zeros_like(value), grid=unit.grid)


def overflow(unit: Unit) -> str | None:
    """Why sums of the layer's integers may leave INT32, by its own weights and the largest number of the input's grid.

    With 127 for the largest integer, 133,144 kept terms never do; this counts what is really there.
    """
    step, grid = unit.product_step, unit.grids.get(unit.input)
    if step is None or grid is None:
        return None
    layer = unit.layer
    out_axis = 0 if layer.group_axis == 1 else layer.weight.ndim - 1
    others = tuple(axis for axis in range(layer.weight.ndim) if axis != out_axis)
    sums = np.abs(layer.weight.astype(np.float64)).sum(axis=others) * grid.reach
    if layer.bias is not None:
        sums = sums + np.abs(layer.bias.astype(np.float64))
    largest = float((sums / step).max(initial=0))
    if largest <= _LARGEST_INT32:
        return None
    return f"its sums of integers may reach {largest:.3g}, more than INT32 holds"


def tail_slope(unit: Unit) -> float:
    """By how much the tail may stretch the distance of two inputs: 1, or the slopes of LeakyRelu above 1."""
    return math.prod(_slope(node) for node in unit.tail)


def _error_behind(node: Node, inputs: Sequence[Array | None], error: Values) -> Values:
    """The bound behind an elementwise operator, given that in front of it."""
    if node.op in ("Relu", "Clip"):
        return error
    terms = sum(np.abs(array) for array in inputs if array is not None)
    return _slope(node) * (error + growth(np.array(_TAIL), UNIT_FP32) * (terms + error))


def _slope(node: Node) -> float:
    return max(1.0, abs(node.attributes.get("alpha", 0.01))) if node.op == "LeakyRelu" else 1.0


def _inputs(unit: Unit, node: Node, value: Values, others: Mapping[str, Array]) -> list[Array | None]:
    """The arrays that a node of the tail reads, `value` being what comes from the layer."""
    inside = {unit.layer.node.outputs[0], *(other.outputs[0] for other in unit.tail)}
    known = {**unit.constants, **others}
    return [value if name in inside else known[name].astype(np.float64) if name else None for name in node.inputs]


def _bias_halfstep(unit: Unit) -> npt.NDArray[np.float64]:
    """Half a step of the grid that the kernel may put each bias on, (out_channels,); 0 without biases."""
    channels = len(kept_terms(unit.layer))
    if unit.layer.bias is None or unit.product_step is None:
        return np.zeros(channels)
    return np.broadcast_to(unit.product_step / 2, channels)
