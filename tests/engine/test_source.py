from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.engine.source import precision_of, read_source
from masksparse_deploy.graph.annotations import POSITIONS
from masksparse_deploy.graph.reader import parse_graph, read_graph
from tests.models.make_onnx import residual_pair


def save(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    onnx.save(model, path)
    return path


def matmul(dtype: int, *, extra_nodes: tuple[onnx.NodeProto, ...] = ()) -> bytes:
    """x @ w with a weight of the given type."""
    values = numpy_helper.from_array(np.ones((4, 4), helper.tensor_dtype_to_np_dtype(dtype)), "w")
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [helper.make_tensor_value_info(name, dtype, [1, 4]) for name in ("x", "y")]
    graph = helper.make_graph([node, *extra_nodes], "g", ends[:1], ends[1:], [values])
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10).SerializeToString())


@pytest.mark.parametrize(("role", "own"), [("sparse", False), ("dense", False), ("rewritten", True)])
def test_rewritten_files_have_operators_of_their_own(tmp_path: Path, role: str, own: bool) -> None:
    _, model = residual_pair()
    for entry in model.metadata_props:
        if entry.key == "masksparse.role":
            entry.value = role
    assert read_source(save(model, tmp_path)).own_operators is own


def test_masked_positions_are_operators_of_their_own(tmp_path: Path) -> None:
    _, model = residual_pair()
    model.graph.node[0].metadata_props.add(key=POSITIONS, value="the digest of a mask")
    assert read_source(save(model, tmp_path)).own_operators


@pytest.mark.parametrize(
    ("dtype", "precision"), [(TensorProto.FLOAT, "fp32"), (TensorProto.FLOAT16, "fp16"), (TensorProto.BFLOAT16, "bf16")]
)
def test_the_precision_is_that_of_the_weights(dtype: int, precision: str) -> None:
    assert precision_of(parse_graph(matmul(dtype), name="m")) == precision


def test_quantised_files_are_int8() -> None:
    quantise = helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])
    model = onnx.load_model_from_string(matmul(TensorProto.FLOAT, extra_nodes=(quantise,)))
    model.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "scale"))
    model.graph.initializer.append(numpy_helper.from_array(np.int8(0), "zero"))
    assert precision_of(parse_graph(model.SerializeToString(), name="m")) == "int8"


def test_a_file_is_described(dense_onnx: Path) -> None:
    source = read_source(dense_onnx)
    assert (source.input_name, source.input_shape, source.precision) == ("images", (None, 3, 8, 8), "fp32")
    assert source.with_exposed_outputs() == source.content == dense_onnx.read_bytes()


def test_exposing_repeats_nothing(dense_onnx: Path) -> None:
    source = read_source(dense_onnx, ("stem.out", "logits", "stem.out"))
    assert source.exposed == ("stem.out",)
    model = onnx.load_model_from_string(source.with_exposed_outputs())
    assert [output.name for output in model.graph.output] == ["logits", "stem.out"]


def test_inputs_and_weights_cannot_be_exposed(dense_onnx: Path) -> None:
    for name in ("images", "stem.weight"):
        with pytest.raises(UsageError, match="computes no tensor"):
            read_source(dense_onnx, (name,))


def test_more_than_one_input_is_refused(dense_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx)
    model.graph.input.append(helper.make_tensor_value_info("second", TensorProto.FLOAT, [1]))
    with pytest.raises(UsageError, match=r"has 2 inputs \(images, second\)"):
        read_source(save(model, tmp_path))


def test_inputs_that_are_no_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(matmul(TensorProto.FLOAT))
    with pytest.raises(UsageError, match=r"input x has shape \(1, 4\)"):
        read_source(tmp_path / "m.onnx")


def test_weights_in_other_files_are_put_in(dense_onnx: Path, tmp_path: Path) -> None:
    model = onnx.load(dense_onnx)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    source = read_source(tmp_path / "m.onnx")
    assert source.graph.sha256 == read_graph(tmp_path / "m.onnx").sha256
    assert len(source.content) > (tmp_path / "m.onnx").stat().st_size
    inside = parse_graph(source.content, name="inside")
    for name, array in parse_graph(dense_onnx.read_bytes(), name="dense").constants.items():
        np.testing.assert_array_equal(inside.constants[name], array)
