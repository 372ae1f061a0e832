"""What fuzzing has found, each with the smallest file that shows it."""

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.bake import proto_twins
from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint
from masksparse_deploy.bake.trace import GraphMismatchError
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import read_graph
from tests.fuzz.seeds import seed_named

TWO_FOUR = NMPattern(n=2, m=4)
W = np.random.default_rng(0).standard_normal((8, 8), dtype=np.float32)


def masks_of(**weights: np.ndarray) -> MaskSet:
    """Masks along axis 0, where MatMul has its input channels."""
    layers = {
        name: LayerMask(
            weight_name=name, keep=TWO_FOUR.keep_largest(np.abs(weight), group_axis=0), group_axis=0, pattern=TWO_FOUR
        )
        for name, weight in weights.items()
    }
    return MaskSet(layers=layers, source_sha256="0" * 64, method="magnitude")


def product(weight: TensorProto | None = None) -> onnx.ModelProto:
    """y = x w."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 8])],
        [weight or numpy_helper.from_array(W, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def saved(model: onnx.ModelProto, folder: Path) -> Path:
    path = folder / "model.onnx"
    path.write_bytes(model.SerializeToString())
    return path


def test_weights_in_the_field_of_another_type_too_are_refused(tmp_path: Path) -> None:
    # The reader took one of them; the writer failed on the other with an AssertionError.
    weight = numpy_helper.from_array(np.tile(W, (8, 8)), "w")
    weight.float_data.append(1.0)
    path = saved(product(weight), tmp_path)
    for attempt in (lambda: lint(path), lambda: bake_file(path, masks_of(w=W), BakeOptions(), out=tmp_path / "out")):
        with pytest.raises(ArtifactError, match="stores values in float_data and in raw_data"):
            attempt()


def test_an_int8_file_may_say_on_the_node_alone_why_its_output_is_float(tmp_path: Path) -> None:
    # The linter called what the bake stage had written a broken claim.
    images = np.ones((3, 8), dtype=np.float32)
    options = BakeOptions(precision="int8")
    bake_file(saved(product(), tmp_path), masks_of(w=W), options, out=tmp_path / "out", calibration=images)
    report = lint(tmp_path / "out" / "sparse.onnx")
    assert report.ok
    assert [layer.state for layer in report.layers] == ["conforming"]


def test_a_function_of_another_version_than_the_file_imports_is_not_baked(tmp_path: Path) -> None:
    # It is not inlined: nothing shows that the weight it is called with is one, and conversions stopped with a ValueError.
    seed = seed_named("functions")
    model = onnx.load_model_from_string(seed.model)
    next(entry for entry in model.opset_import if entry.domain == "own").version = 9
    with pytest.raises(UsageError, match=r"version 1 of the operators of own, the file for version 9; inline it first"):
        bake_file(saved(model, tmp_path), seed.masks, BakeOptions(), out=tmp_path / "out")


@pytest.mark.parametrize("perm", [[0, 1, 2], [0, 0], [0]])
def test_a_transposition_of_other_axes_than_there_are(perm: list[int], tmp_path: Path) -> None:
    # The checker accepts it; following a constant through it was an IndexError.
    model = product()
    model.graph.node.append(helper.make_node("Transpose", ["w"], ["turned"], perm=perm))
    model.graph.output.append(helper.make_tensor_value_info("turned", TensorProto.FLOAT, [None, None]))
    with pytest.raises(GraphMismatchError, match="also read by"):
        bake_file(saved(model, tmp_path), masks_of(w=W), BakeOptions(), out=tmp_path / "out")


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    # Protobuf gives such a name as bytes, which the linter's report refused with a ValidationError.
    path = saved(product(), tmp_path)
    path.write_bytes(path.read_bytes().replace(b"product", b"prod\xffct"))
    with pytest.raises(ArtifactError, match="holds text that is not UTF-8"):
        lint(path)


@pytest.mark.parametrize("length", [-1, -(2**63)])
def test_a_negative_length_of_the_input_is_one_that_is_not_fixed(length: int, tmp_path: Path) -> None:
    # Batches of that many images never came to an end.
    model = product()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = length
    path = saved(model, tmp_path)
    assert read_graph(path).inputs == {"x": (None, 8)}
    bake_file(path, masks_of(w=W), BakeOptions(precision="fp16"), out=tmp_path / "out", calibration=np.ones((3, 8), np.float32))


def test_quantizing_looks_at_each_operator_of_a_long_graph_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Finding a layer's place in the graph by its index took quadratic time: minutes for 3,000 operators.
    monkeypatch.setattr(ir.Graph, "index", lambda self, node: pytest.fail("searches the graph"))
    images = np.ones((3, 8), dtype=np.float32)
    options = BakeOptions(precision="int8")
    bake_file(saved(product(), tmp_path), masks_of(w=W), options, out=tmp_path / "out", calibration=images)


def test_weights_at_the_end_of_fp32_are_quantized_without_a_warning(tmp_path: Path) -> None:
    # The largest level's upper edge is beyond FP32.
    weight = np.full((8, 8), np.finfo(np.float32).max, dtype=np.float32)
    images, options = np.full((3, 8), 1e-30, dtype=np.float32), BakeOptions(precision="int8")
    path = saved(product(numpy_helper.from_array(weight, "w")), tmp_path)
    (row,) = bake_file(path, masks_of(w=weight), options, out=tmp_path / "out", calibration=images).ranges
    assert row.weight_overflow_count == 0


def test_comparing_two_files_looks_at_the_names_of_a_graph_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # It gathered them anew for each entry of value_info: half a second for each comparison of 3,000 operators.
    model = product()
    for step in range(50):
        model.graph.node.append(helper.make_node("Relu", ["x"], [f"r{step}"]))
        model.graph.value_info.append(helper.make_tensor_value_info(f"r{step}", TensorProto.FLOAT, [3, 8]))
    asked: list[object] = []
    names = proto_twins._names
    monkeypatch.setattr(proto_twins, "_names", lambda values: asked.append(values) or names(values))
    assert list(proto_twins.proto_differences(model, model, proto_twins.any_content)) == []
    assert len(asked) < 10
