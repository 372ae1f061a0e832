"""The two 16-bit floating-point formats, and where casting FP32 to them loses a value altogether."""

from dataclasses import dataclass
from typing import Any, Literal

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["FloatFormat", "FloatPrecision", "float_format"]

FloatPrecision = Literal["fp16", "bf16"]


@dataclass(frozen=True, kw_only=True)
class FloatFormat:
    """A format with `fraction_bits` stored bits of the significand, cast to by rounding to nearest, ties to even.

    Attributes:
        title: as messages write it.
        ir_type: the type of tensors in an ONNX file.
        dtype: the same for NumPy.
        largest: the largest finite number.
        infinite_from: the smallest FP32 magnitude that becomes infinite: half a step beyond `largest`, a tie that goes to
            the even neighbour, infinity.
        zero_to: the largest FP32 magnitude that becomes zero: half the smallest subnormal number, a tie that goes to zero.
    """

    title: str
    ir_type: ir.DataType
    dtype: np.dtype[Any]
    largest: float
    infinite_from: float
    zero_to: float

    def cast(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """`array` in this format; too large values become infinite without a word from NumPy."""
        with np.errstate(over="ignore"):
            return array.astype(self.dtype)

    def overflows(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Where a finite value becomes infinite.

        FP32's largest finite number and its negative do not count: files write them for "no limit", which infinity is too.
        """
        magnitude = np.abs(array)
        unlimited = (magnitude == np.finfo(np.float32).max) | (magnitude == np.inf)
        overflowing: npt.NDArray[np.bool_] = (magnitude >= np.float32(self.infinite_from)) & ~unlimited
        return overflowing

    def flushes(self, array: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
        """Where a value that is not zero becomes zero."""
        flushed: npt.NDArray[np.bool_] = (array != 0) & (np.abs(array) <= np.float32(self.zero_to))
        return flushed


def float_format(precision: FloatPrecision) -> FloatFormat:
    """The format of that name."""
    return _FORMATS[precision]


def _format(title: str, ir_type: ir.DataType, dtype: Any, *, fraction_bits: int, largest_exponent: int) -> FloatFormat:
    step = 2.0 ** (largest_exponent - fraction_bits)
    largest = 2.0 ** (largest_exponent + 1) - step
    # the smallest normal exponent is 1 - largest_exponent
    smallest = 2.0 ** (1 - largest_exponent - fraction_bits)
    return FloatFormat(
        title=title,
        ir_type=ir_type,
        dtype=np.dtype(dtype),
        largest=largest,
        infinite_from=largest + step / 2,
        zero_to=smallest / 2,
    )


_FORMATS: dict[FloatPrecision, FloatFormat] = {
    "fp16": _format("FP16", ir.DataType.FLOAT16, np.float16, fraction_bits=10, largest_exponent=15),
    "bf16": _format("BF16", ir.DataType.BFLOAT16, ml_dtypes.bfloat16, fraction_bits=7, largest_exponent=127),
}
