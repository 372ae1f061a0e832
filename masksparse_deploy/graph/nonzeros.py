"""Which weights are not zero, read from their bits where arithmetic on the type is slow."""

from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["nonzero_places"]

# The bits that are all 0 for zero and nothing else: without the sign where there is a negative zero (the types in "uz" have
# none), and without the bits of the byte that the types of 2 to 6 bits do not use.
_MAGNITUDE_BITS = {
    "float16": 0x7FFF,
    "bfloat16": 0x7FFF,
    "float8_e3m4": 0x7F,
    "float8_e4m3": 0x7F,
    "float8_e4m3fn": 0x7F,
    "float8_e4m3fnuz": 0xFF,
    "float8_e4m3b11fnuz": 0xFF,
    "float8_e5m2": 0x7F,
    "float8_e5m2fnuz": 0xFF,
    "float6_e2m3fn": 0x1F,
    "float6_e3m2fn": 0x1F,
    "float4_e2m1fn": 0x07,
    "int4": 0x0F,
    "uint4": 0x0F,
    "int2": 0x03,
    "uint2": 0x03,
}


def nonzero_places(weight: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """`weight != 0`, bool, the shape of `weight`; NaN is not zero, and FP8's scales (E8M0), which have no zero, never are."""
    name = weight.dtype.name
    if name == "float8_e8m0fnu":
        return np.ones(weight.shape, dtype=np.bool_)
    bits = _MAGNITUDE_BITS.get(name)
    if bits is None:
        places: npt.NDArray[np.bool_] = weight != 0
        return places
    kind: Any = np.uint16 if weight.dtype.itemsize == 2 else np.uint8
    pattern = weight.view(kind)
    masked: npt.NDArray[np.bool_] = (pattern & kind(bits)) != 0
    return masked
