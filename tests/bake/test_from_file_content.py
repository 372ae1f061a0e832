"""Baking ONNX files of any origin: nothing is lost, in any precision."""

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint
from masksparse_deploy.bake.proto_twins import any_content, proto_differences
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph import annotations as keys
from tests.bake.baking import bake, run
from tests.bake.file_models import (
    mask_of,
    mask_set,
    matmul_model,
    model_of,
    rich_masks,
    rich_model,
    save_external,
    values,
)

# Nothing lost -----------------------------------------------------------------------------------------------------------------


def test_everything_that_is_the_users_survives(tmp_path: Path) -> None:
    source = rich_model()
    bake(source, rich_masks(), tmp_path)
    dense, sparse = (onnx.load(tmp_path / "out" / name) for name in ("dense.onnx", "sparse.onnx"))
    assert list(proto_differences(source, dense, lambda name, one, other: one.raw_data == other.raw_data)) == []
    assert list(proto_differences(source, sparse, any_content)) == []
    assert [(entry.domain, entry.version) for entry in sparse.opset_import] == [("com.example", 7), ("", 18)]
    assert (sparse.ir_version, sparse.producer_version, sparse.model_version) == (9, "1.2+local", 12)
    assert {entry.key: entry.value for entry in sparse.graph.initializer[0].metadata_props}["author"] == "the user"
    for part in (sparse.graph.initializer[0], sparse.graph.node[0], dense.graph.initializer[0]):
        names = [entry.key for entry in part.metadata_props]
        assert len(names) == len(set(names))


def test_baking_again_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        bake(rich_model(), rich_masks(), tmp_path / name)
    for path in (tmp_path / "one" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "out" / path.name).read_bytes(), path.name


def test_what_exporters_note_about_the_machine_goes(tmp_path: Path) -> None:
    model = rich_model()
    node = model.graph.node[0]
    node.metadata_props.add(key="pkg.torch.onnx.stack_trace", value='File "/home/me/net.py", line 3, in forward')
    node.metadata_props.add(key="pkg.onnxscript.name", value="conv")
    node.metadata_props.add(key="where", value="made by /home/me/net.py")
    model.graph.node[2].doc_string = "/usr/lib/python3/torch/nn/functional.py(10): forward"
    model.graph.node[3].doc_string = "see net.py for the head"
    bake(model, rich_masks(), tmp_path)
    sparse = onnx.load(tmp_path / "out" / "sparse.onnx")
    assert not {"pkg.torch.onnx.stack_trace", "pkg.onnxscript.name", "where"} & {
        p.key for p in sparse.graph.node[0].metadata_props
    }
    assert sparse.graph.node[2].doc_string == "" and sparse.graph.node[3].doc_string == "see net.py for the head"
    assert b"/home/me" not in (tmp_path / "out" / "sparse.onnx").read_bytes()


def test_an_earlier_baking_leaves_no_claims(tmp_path: Path) -> None:
    bake(rich_model(), rich_masks(), tmp_path)
    only_conv = mask_set(rich_masks().layers["conv.weight"])
    bake_file(tmp_path / "out" / "sparse.onnx", only_conv, BakeOptions(), out=tmp_path / "again")
    again = onnx.load(tmp_path / "again" / "sparse.onnx")
    assert [p.key for p in again.graph.node[3].metadata_props if p.key.startswith(keys.PREFIX)] == [keys.DENSE_REASON]
    dense = (tmp_path / "again" / "dense.onnx").read_bytes()
    assert keys.PATTERN.encode() not in dense


def with_training(model: onnx.ModelProto) -> None:
    model.training_info.add().algorithm.name = "steps"


def with_sparse_attribute(model: onnx.ModelProto) -> None:
    attribute = model.graph.node[1].attribute.add(name="sparse", type=onnx.AttributeProto.SPARSE_TENSOR)
    attribute.sparse_tensor.values.CopyFrom(numpy_helper.from_array(values(1), "v"))
    attribute.sparse_tensor.indices.CopyFrom(numpy_helper.from_array(np.zeros(1, np.int64), "i"))
    attribute.sparse_tensor.dims.append(4)


@pytest.mark.parametrize(
    ("add", "message"),
    [
        (with_training, r"would be lost by rewriting it \(training_info: 1 and 0\)"),
        (with_sparse_attribute, r"stores .* as a sparse tensor"),
    ],
)
def test_what_cannot_be_carried_is_refused(tmp_path: Path, add: Callable[[onnx.ModelProto], None], message: str) -> None:
    model = rich_model()
    add(model)
    with pytest.raises(UsageError, match=message):
        bake(model, rich_masks(), tmp_path)
    assert not (tmp_path / "out").exists()


def test_fields_that_onnx_does_not_know_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "in.onnx"
    path.write_bytes(rich_model().SerializeToString() + b"\xfa\x3e\x02hi")  # field 1007, a string
    with pytest.raises(UsageError, match=r"in\.onnx holds fields that ONNX .* does not know and that would be lost"):
        bake_file(path, rich_masks(), BakeOptions(), out=tmp_path / "out")


# Data files -------------------------------------------------------------------------------------------------------------------


def test_data_files_stay_data_files(tmp_path: Path) -> None:
    source = tmp_path / "in" / "net.onnx"
    save_external(rich_model(), source, {"conv.weight": "data/conv.bin", "fc.weight": "rest.bin"})
    bake_file(source, rich_masks(), BakeOptions(), out=tmp_path / "out")
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    twins = {
        f"{place}{twin}.{name}" for place, name in (("data/", "conv.bin"), ("", "rest.bin")) for twin in ("dense", "sparse")
    }
    assert written == {"dense.onnx", "sparse.onnx", "bake.json", *twins}
    inside = onnx.load(tmp_path / "out" / "sparse.onnx")
    for name, mask in rich_masks().layers.items():
        (tensor,) = [tensor for tensor in inside.graph.initializer if tensor.name == name]
        found = numpy_helper.to_array(tensor)
        np.testing.assert_array_equal(found, np.where(mask.keep, values(*found.shape), 0))


# Reduced precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_reduced_precisions(tmp_path: Path, precision: str) -> None:
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight"], ["a"], name="conv", kernel_shape=[3, 3]),
        helper.make_node("Relu", ["a"], ["b"], name="relu"),
        helper.make_node("Flatten", ["b"], ["c"], name="flatten"),
        helper.make_node("Gemm", ["c", "fc.weight"], ["y"], name="fc", transB=1),
    ]
    weights = {"conv.weight": values(8, 8, 3, 3), "fc.weight": values(4, 8)}
    model = model_of(nodes, weights, x=["batch", 8, 3, 3], y=["batch", 4], opset=22)
    save_external(model, tmp_path / "in" / "net.onnx", {"conv.weight": "net.bin"})
    options = BakeOptions.model_validate({"precision": precision})
    out = tmp_path / "out"
    report = bake_file(tmp_path / "in" / "net.onnx", rich_masks(), options, out=out, calibration=values(16, 8, 3, 3, seed=1))
    assert report.precision == precision and report.ranges
    assert [(layer.layer, layer.violation_count) for layer in report.layers] == [("conv", 0), ("fc", 0)]
    assert (out / "sparse.net.bin").stat().st_size > 0
    assert lint(out / "sparse.onnx").ok


@pytest.mark.parametrize(("dtype", "precision"), [(np.float16, "fp16"), (ml_dtypes.bfloat16, "bf16")])
def test_a_file_in_reduced_precision_keeps_it(tmp_path: Path, dtype: type, precision: str) -> None:
    weight = values(8, 12).astype(dtype)
    model = matmul_model(weight)
    for value in (model.graph.input[0], model.graph.output[0]):
        value.type.tensor_type.elem_type = model.graph.initializer[0].data_type
    mask = mask_of("fc.weight", weight, 0)
    assert bake(model, mask_set(mask), tmp_path).precision == precision
    sparse = numpy_helper.to_array(onnx.load(tmp_path / "out" / "sparse.onnx").graph.initializer[0])
    np.testing.assert_array_equal(sparse, np.where(mask.keep, weight, np.zeros((), dtype)))
    options = BakeOptions(precision="int8")
    with pytest.raises(UsageError, match=f"the weights of the ONNX file are {precision} already, and only fp32"):
        bake_file(tmp_path / "in.onnx", mask_set(mask), options, out=tmp_path / "out", calibration=values(2, 8))


def test_channels_that_are_no_multiple_of_four_are_padded(tmp_path: Path) -> None:
    weight = values(5, 6, 3, 3)
    node = helper.make_node("Conv", ["x", "conv.weight"], ["y"], name="conv", kernel_shape=[3, 3])
    model = model_of([node], {"conv.weight": weight}, x=["batch", 6, 4, 4], y=["batch", 5, 2, 2])
    report = bake(model, mask_set(mask_of("conv.weight", weight, 1)), tmp_path)
    assert [(layer.channels, layer.padded_channels) for layer in report.padded] == [(6, 8)]
    x = values(2, 6, 4, 4, seed=1)
    # Sums of 54 terms of size one in FP32: 54 * 2^-24, about 3e-6
    np.testing.assert_allclose(run(tmp_path / "out" / "dense.onnx", x), run(tmp_path / "in.onnx", x), atol=3e-5)
    assert lint(tmp_path / "out" / "sparse.onnx").ok
