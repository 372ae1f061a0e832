"""Every element type in every form of storage gives the array that ONNX's own reader gives."""

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph.external import ExternalFiles
from masksparse_deploy.graph.tensors import dense_tensor

NUMBERS = np.array([[-2, -1, 0, 1, 2, 0, 1]])
UNSIGNED = ("uint8", "uint16", "uint32", "uint64", "uint4", "uint2", "bool")
DTYPES: list[Any] = [np.dtype(code) for code in "efdbhilBHIL?FD"]
DTYPES += [
    np.dtype(dtype)
    for dtype in (
        ml_dtypes.bfloat16,
        ml_dtypes.float8_e4m3fn,
        ml_dtypes.float8_e4m3fnuz,
        ml_dtypes.float8_e5m2,
        ml_dtypes.float8_e5m2fnuz,
        ml_dtypes.float8_e8m0fnu,
        ml_dtypes.float4_e2m1fn,
        ml_dtypes.int4,
        ml_dtypes.uint4,
        ml_dtypes.int2,
        ml_dtypes.uint2,
    )
]


def values(dtype: Any) -> Any:
    """Seven values that do not fill the last byte of packed types."""
    if dtype.name == "float8_e8m0fnu":
        return np.array([[1, 2, 4, 8, 0.5, 1, 2]]).astype(dtype)
    return (np.abs(NUMBERS) if dtype.name in UNSIGNED else NUMBERS.clip(-2, 1)).astype(dtype)


def same(found: Any, expected: Any) -> None:
    assert found.dtype == expected.dtype
    assert found.shape == expected.shape
    assert found.tobytes() == expected.tobytes()
    assert not found.flags.writeable


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: dtype.name)
def test_raw_typed_and_external(dtype: Any, tmp_path: Path) -> None:
    files = ExternalFiles(tmp_path / "model.onnx", "model.onnx")
    expected = values(dtype)
    raw = numpy_helper.from_array(expected, "t")
    assert raw.HasField("raw_data")
    same(dense_tensor(raw, files), numpy_helper.to_array(raw))
    np.testing.assert_array_equal(dense_tensor(raw, files), expected)

    typed = helper.make_tensor("t", raw.data_type, expected.shape, expected.reshape(-1))
    assert not typed.HasField("raw_data")
    same(dense_tensor(typed, files), numpy_helper.to_array(raw))

    (tmp_path / "t.bin").write_bytes(b"\0" + raw.raw_data)
    raw.ClearField("raw_data")
    raw.data_location = TensorProto.EXTERNAL
    raw.external_data.add(key="location", value="t.bin")
    raw.external_data.add(key="offset", value="1")
    same(dense_tensor(raw, files), numpy_helper.to_array(typed))


def test_text_and_no_elements() -> None:
    files = ExternalFiles(None, "model")
    text = dense_tensor(numpy_helper.from_array(np.array(["a", "bc"], dtype=np.object_)), files)
    assert text.tolist() == ["a", "bc"]
    for raw in (True, False):
        empty = TensorProto(data_type=TensorProto.FLOAT, dims=[0, 3], raw_data=b"" if raw else None)
        assert dense_tensor(empty, files).shape == (0, 3)


@pytest.mark.parametrize(
    ("tensor", "why"),
    [
        (TensorProto(data_type=1, dims=[2], raw_data=bytes(7)), "has 7 bytes; its shape and type take 8"),
        (TensorProto(data_type=1, dims=[2], raw_data=bytes(9)), "has 9 bytes"),
        (TensorProto(data_type=1, dims=[2], float_data=[1.0]), "has 1 values; its shape and type take 2"),
        (TensorProto(data_type=TensorProto.INT4, dims=[3], int32_data=[1]), "has 1 values; its shape and type take 2"),
        (
            TensorProto(data_type=TensorProto.COMPLEX64, dims=[2], float_data=[1.0, 1.0]),
            "has 2 values; its shape and type take 4",
        ),
        (TensorProto(data_type=1, dims=[-1], raw_data=bytes(4)), "has the shape"),
        (TensorProto(data_type=1, dims=[1] * 1000, raw_data=bytes(4)), "has the shape"),
        (TensorProto(data_type=1, dims=[2**62] * 30, raw_data=bytes(4)), "has 4 bytes"),
        (TensorProto(data_type=99, dims=[1], raw_data=bytes(4)), "unknown element type 99"),
        (TensorProto(data_type=0, dims=[1], raw_data=bytes(4)), "unknown element type 0"),
        (TensorProto(data_type=TensorProto.STRING, dims=[1], raw_data=bytes(4)), "stores text as raw data"),
        (TensorProto(data_type=1, dims=[1], float_data=[1.0], segment=TensorProto.Segment(begin=0)), "in segments"),
    ],
)
def test_content_that_does_not_fit(tensor: onnx.TensorProto, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        dense_tensor(tensor, ExternalFiles(None, "model"))
