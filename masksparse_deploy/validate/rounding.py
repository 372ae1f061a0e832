"""How far a floating-point kernel may round away from the exact output of one layer, for every output element."""

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.evaluate import absolute_layer
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["BOUNDED_PRECISIONS", "gamma", "kept_terms", "outside_bound", "rounding_bound"]

UNIT_FP32 = 2.0**-24
UNIT_FP64 = 2.0**-53
SMALLEST_NORMAL_FP32 = 2.0**-126
# Precisions in which layers hand on their results: half a unit in the last place of 1, and the largest absolute error of a
# result near zero, where numbers are equally spaced.
_STORAGE = {"fp32": (0.0, 0.0), "fp16": (2.0**-11, 2.0**-25), "bf16": (2.0**-8, 2.0**-126)}
BOUNDED_PRECISIONS = tuple(_STORAGE)

# Parts of tactic names whose arithmetic transforms inputs and weights first; gamma_n does not bound their error.
_UNCOVERED_TACTICS = ("winograd", "fft")
_UNCOVERED_PRECISIONS = ("tf32", "fp16", "bf16", "int8", "half")


def gamma(operation_count: npt.NDArray[np.int64], unit: float) -> npt.NDArray[np.float64]:
    """gamma_n = n u / (1 - n u), the growth of n relative errors of at most u (Higham 2002, Lemma 3.1); needs n u < 1."""
    product = operation_count * unit
    assert (product < 1).all(), "gamma_n is defined for n u < 1 only"
    return np.asarray(product / (1 - product), dtype=np.float64)


def kept_terms(layer: WeightedLayer) -> npt.NDArray[np.int64]:
    """How many nonzero weights each output channel sums over, int64 (out_channels,); products with zero are exact."""
    out_axis = 0 if layer.group_axis == 1 else layer.weight.ndim - 1
    others = tuple(axis for axis in range(layer.weight.ndim) if axis != out_axis)
    return np.asarray(np.count_nonzero(layer.weight, axis=others), dtype=np.int64)


def rounding_bound(layer: WeightedLayer, x: npt.NDArray[Any], precision: str = "fp32") -> npt.NDArray[np.float64]:
    """Bound |engine output - float64 reference| for every output element of one layer whose sums are kept in FP32.

    With n kept terms, every term of W * x + b goes through at most one rounding as a product, n as a partial sum (n - 1
    additions, and one of the bias) and one when the output is written or scaled: n + 2 in any order of summation, with or
    without fused multiply-add, so that the error is at most gamma_(n+2) (|W| * |x| + |b|) (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1). Results below the normal range may be flushed to zero: another 2^-126 for each
    of the 2 n + 2 operations. The float64 reference and this bound round as well, by gamma_(n+2) at 2^-53 each.

    With FP16 or BF16 weights and activations (u = 2^-11 or 2^-8) products are exact in FP32. The sum is rounded to the format,
    and once more where the bias is added in it: relative errors of at most 2 u + u^2. And the kernel may have read its input
    before that was rounded to the format in which it is seen here: x is off by at most u / (1 - u) |x|. Where FP16 numbers are
    equally spaced, near zero, each of the three is off by another 2^-25, as CPUs and tensor cores keep such numbers.

    Covers direct and im2col/GEMM tactics with FP32 accumulation whose weights are those of `layer`. It does not cover Winograd
    or FFT tactics, nor TF32, accumulation in FP16 or INT8 arithmetic (see `outside_bound`).

    Args:
        layer: a Conv, Gemm or MatMul.
        x: the layer's input as the engine had it, (count, ...).
        precision: "fp32", "fp16" or "bf16": of weights and activations.

    Returns:
        float64, the shape of the layer's output.
    """
    kept = kept_terms(layer)
    unit, spacing = _STORAGE[precision]
    magnitude = absolute_layer(layer, x)
    shape = (-1, *(1,) * (magnitude.ndim - 2)) if layer.node.op == "Conv" else (-1,)
    factor = (gamma(kept + 2, UNIT_FP32) + 2 * gamma(kept + 2, UNIT_FP64)).reshape(shape)
    flushed = ((2 * kept + 2) * SMALLEST_NORMAL_FP32).reshape(shape)
    if unit == 0:
        return np.asarray(factor * magnitude + flushed, dtype=np.float64)
    unseen = unit / (1 - unit) * np.abs(x.astype(np.float64)) + spacing
    moved = absolute_layer(replace(layer, bias=None), unseen)
    rounded = factor * (magnitude + moved) + flushed
    stored = (2 * unit + unit**2) * (magnitude + moved + rounded) + 3 * spacing
    return np.asarray(moved + rounded + stored, dtype=np.float64)


def outside_bound(tactic: str, precision: str) -> str | None:
    """Why `rounding_bound` does not apply to a kernel, in words, or None where nothing speaks against it."""
    name = tactic.lower()
    if precision not in _STORAGE:
        return f"the engine computes in {precision}, the bound is for {', '.join(_STORAGE)}"
    for part in _UNCOVERED_TACTICS:
        if part in name:
            return f"tactic {tactic} is a {part} algorithm, which the bound does not cover"
    for part in _UNCOVERED_PRECISIONS:
        if part in name and part != precision:
            return f"tactic {tactic} computes in {part}, the bound is for sums in fp32"
    if precision != "fp32":
        return f"tactic {tactic} does not tell whether it keeps its sums in fp32, as the bound demands"
    return None
