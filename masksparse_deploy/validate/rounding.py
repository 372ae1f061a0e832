"""How far an FP32 kernel may round away from the exact output of one layer, for every output element."""

from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.evaluate import absolute_layer
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["gamma", "kept_terms", "outside_bound", "rounding_bound"]

UNIT_FP32 = 2.0**-24
UNIT_FP64 = 2.0**-53
SMALLEST_NORMAL_FP32 = 2.0**-126

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


def rounding_bound(layer: WeightedLayer, x: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Bound |engine output - float64 reference| for every output element of one layer computed in FP32.

    With n kept terms, every term of W * x + b goes through at most one rounding as a product, n as a partial sum (n - 1
    additions, and one of the bias) and one when the output is written or scaled: n + 2 in any order of summation, with or
    without fused multiply-add, so that the error is at most gamma_(n+2) (|W| * |x| + |b|) (Higham, Accuracy and Stability of
    Numerical Algorithms, 2002, section 3.1). Results below the normal range may be flushed to zero: another 2^-126 for each
    of the 2 n + 2 operations. The float64 reference and this bound round as well, by gamma_(n+2) at 2^-53 each.

    Covers direct and im2col/GEMM tactics in FP32 whose weights are those of `layer`. It does not cover Winograd or FFT
    tactics, nor TF32, FP16 or INT8 arithmetic (see `outside_bound`).

    Args:
        layer: a Conv, Gemm or MatMul; FP32 weight.
        x: the layer's input as the engine had it, float32 (count, ...).

    Returns:
        float64, the shape of the layer's output.
    """
    kept = kept_terms(layer)
    factor = gamma(kept + 2, UNIT_FP32) + 2 * gamma(kept + 2, UNIT_FP64)
    flushed = (2 * kept + 2) * SMALLEST_NORMAL_FP32
    magnitude = absolute_layer(layer, x)
    shape = (-1, *(1,) * (magnitude.ndim - 2)) if layer.node.op == "Conv" else (-1,)
    return np.asarray(factor.reshape(shape) * magnitude + flushed.reshape(shape), dtype=np.float64)


def outside_bound(tactic: str, precision: str) -> str | None:
    """Why `rounding_bound` does not apply to a kernel, in words, or None where nothing speaks against it."""
    name = tactic.lower()
    if precision != "fp32":
        return f"the engine computes in {precision}, the bound is for fp32"
    for part in _UNCOVERED_TACTICS:
        if part in name:
            return f"tactic {tactic} is a {part} algorithm, which the bound does not cover"
    for part in _UNCOVERED_PRECISIONS:
        if part in name:
            return f"tactic {tactic} computes in {part}, the bound is for fp32"
    return None
