"""How far a floating-point kernel may round away from the exact output of one layer, for every output element."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.evaluate import absolute_layer
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.validate.arithmetic import ARITHMETICS, Arithmetic

__all__ = ["UNIT_FP32", "along_channels", "growth", "kept_terms", "rounding_bound"]

UNIT_FP32 = 2.0**-24
UNIT_FP64 = 2.0**-53


def growth(operation_count: npt.NDArray[np.int64], unit: float) -> npt.NDArray[np.float64]:
    """(1 + u)^n - 1: how far n factors 1 + d with |d| <= u lead away from 1; below gamma_n of Higham 2002, Lemma 3.1."""
    return np.asarray(np.expm1(operation_count * np.log1p(unit)), dtype=np.float64)


def kept_terms(layer: WeightedLayer) -> npt.NDArray[np.int64]:
    """How many nonzero weights each output channel sums over, int64 (out_channels,); products with zero are exact."""
    return np.asarray(np.count_nonzero(layer.weight, axis=_summed_axes(layer)), dtype=np.int64)


def along_channels(layer: WeightedLayer, values: npt.NDArray[Any], rank: int) -> npt.NDArray[Any]:
    """Values (out_channels,) in a shape that broadcasts to the layer's output of `rank` axes."""
    return values.reshape((-1, *(1,) * (rank - 2)) if layer.node.op == "Conv" else (-1,))


def rounding_bound(
    layer: WeightedLayer, x: npt.NDArray[Any], arithmetic: Arithmetic = ARITHMETICS["fp32"]
) -> npt.NDArray[np.float64]:
    """Bound |engine output - float64 reference| for every output element of one layer.

    With n kept terms, every term of W * x + b goes through at most one rounding as a product, n as a partial sum (n - 1
    additions, and one of the bias) and one when the output is written or scaled: n + 2 in any order of summation, with or
    without fused multiply-add, so that the error is at most ((1 + u)^(n + 2) - 1) (|W| * |x| + |b|) (Higham, Accuracy and
    Stability of Numerical Algorithms, 2002, section 3.1), u being the unit of the sums. Results below the normal range may be
    flushed to zero, or lie on a grid: another spacing for each of the 2 n + 2 operations. The float64 reference and this bound
    round as well, by the same formula at 2^-53 each.

    TF32: both operands are cut to 10 bits first, which moves each product by (1 + v)^2 - 1 of itself, and operands below the
    normal range may be flushed.

    With FP16 or BF16 weights and activations (u = 2^-11 or 2^-8) products are exact in FP32. The sum is rounded to the format,
    and once more where the bias is added in it: relative errors of at most 2 u + u^2. And the kernel may have read its input
    before that was rounded to the format in which it is seen here: x is off by at most u / (1 - u) |x|. Where FP16 numbers are
    equally spaced, near zero, each of the three is off by another 2^-25, as CPUs and tensor cores keep such numbers.

    Covers direct and im2col/GEMM tactics whose weights are those of `layer`, not Winograd or FFT tactics (see `kernel_of`).

    Args:
        layer: a Conv, Gemm or MatMul.
        x: the layer's input as the engine had it, (count, ...).
        arithmetic: of the kernel.

    Returns:
        float64, the shape of the layer's output; infinite where a partial sum may be too large for the kernel's format.
    """
    kept = kept_terms(layer)
    magnitude = absolute_layer(layer, x)

    def spread(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return along_channels(layer, values, magnitude.ndim)

    unit, spacing = arithmetic.stored_unit, arithmetic.stored_spacing
    factor = spread(growth(kept + 2, arithmetic.sum_unit))
    moved = np.zeros_like(magnitude)
    if unit:
        unseen = unit / (1 - unit) * np.abs(x.astype(np.float64)) + spacing
        moved = absolute_layer(replace(layer, bias=None), unseen)
    cut = _operands(layer, x, magnitude, arithmetic)
    whole = magnitude + moved + cut
    flushed = spread((2 * kept + 2) * arithmetic.sum_spacing) * (1 + factor)
    rounded = (factor + 2 * spread(growth(kept + 2, UNIT_FP64))) * whole + flushed
    stored = (2 * unit + unit**2) * (whole + rounded) + 3 * spacing if unit else 0.0
    bound = np.asarray(moved + cut + rounded + stored, dtype=np.float64)
    return np.asarray(np.where(whole + rounded <= arithmetic.largest_sum, bound, np.inf), dtype=np.float64)


def _operands(
    layer: WeightedLayer, x: npt.NDArray[Any], magnitude: npt.NDArray[Any], arithmetic: Arithmetic
) -> npt.NDArray[np.float64]:
    """How far rounding weights and inputs before they are multiplied moves the output."""
    unit, spacing = arithmetic.operand_unit, arithmetic.operand_spacing
    if unit == 0:
        return np.zeros_like(magnitude)
    # (|W| + v |W| + t)(|x| + v |x| + t) - |W| |x|, with |x| at its largest in the terms of t
    weights = np.abs(layer.weight.astype(np.float64)).sum(axis=_summed_axes(layer))
    largest = float(np.abs(x).max(initial=0))
    near_zero = spacing * (1 + unit) * (weights + kept_terms(layer) * (largest + spacing))
    cut: npt.NDArray[np.float64] = ((1 + unit) ** 2 - 1) * magnitude + along_channels(layer, near_zero, magnitude.ndim)
    return cut


def _summed_axes(layer: WeightedLayer) -> tuple[int, ...]:
    out_axis = 0 if layer.group_axis == 1 else layer.weight.ndim - 1
    return tuple(axis for axis in range(layer.weight.ndim) if axis != out_axis)
