"""Bits against arithmetic: which values of a type are zero."""

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from masksparse_deploy.graph.nonzeros import nonzero_places

SMALL = [
    ml_dtypes.float8_e4m3fn,
    ml_dtypes.float8_e4m3fnuz,
    ml_dtypes.float8_e5m2,
    ml_dtypes.float8_e5m2fnuz,
    ml_dtypes.float8_e8m0fnu,
    ml_dtypes.float4_e2m1fn,
    ml_dtypes.float6_e2m3fn,
    ml_dtypes.float6_e3m2fn,
    ml_dtypes.int4,
    ml_dtypes.uint4,
    ml_dtypes.int2,
    ml_dtypes.uint2,
    np.int8,
    np.uint8,
]


@pytest.mark.parametrize("dtype", SMALL, ids=lambda dtype: np.dtype(dtype).name)
def test_every_pattern_of_a_byte(dtype: Any) -> None:
    name = np.dtype(dtype).name
    # the types of fewer bits are stored in bytes whose upper bits ONNX leaves at zero
    bits = {"4": 4, "2": 2, "6": 6}.get(name.removeprefix("u").removeprefix("int").removeprefix("float")[:1], 8)
    values = np.arange(2**bits, dtype=np.uint8).view(dtype)
    np.testing.assert_array_equal(nonzero_places(values), values.astype(np.float32) != 0)


@pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning")  # signalling NaN among all patterns
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.int16], ids=lambda dtype: np.dtype(dtype).name)
def test_every_pattern_of_two_bytes(dtype: Any) -> None:
    values = np.arange(2**16, dtype=np.uint16).view(dtype)
    np.testing.assert_array_equal(nonzero_places(values), values.astype(np.float64) != 0)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.bool_])
def test_other_types(dtype: Any) -> None:
    values = np.array([0.0, -0.0, 1e-45, np.nan, -1]).astype(dtype) if dtype != np.int64 else np.array([0, 0, 1, 2, -1])
    np.testing.assert_array_equal(nonzero_places(values), values != 0)


def test_views_that_are_not_contiguous() -> None:
    values = np.arange(24, dtype=np.float16).reshape(4, 6)
    np.testing.assert_array_equal(nonzero_places(values.T), values.T != 0)
    np.testing.assert_array_equal(nonzero_places(values[:, ::2]), values[:, ::2] != 0)
