"""What the linter says of masked positions, and which claims about them it finds broken."""

import re
from collections.abc import Callable

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.cli.render import lint_table
from masksparse_deploy.core.artifacts.baking import LintReport
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.graph.reader import parse_graph
from tests.models.make_onnx import residual_pair
from tests.models.positions import random_positions, with_positions

DENSE, SPARSE = residual_pair()


def masked(base: onnx.ModelProto = SPARSE) -> onnx.ModelProto:
    return with_positions(base, random_positions())


def report_of(model: onnx.ModelProto) -> LintReport:
    return lint_graph(parse_graph(model.SerializeToString(), name="model.onnx"), name="model.onnx")


def test_masked_positions_are_listed_with_their_share() -> None:
    report = report_of(masked())
    assert report.ok
    shares = {layer.node: layer.mac_share for layer in report.layers}
    rows = {row.layer: row for row in report.positions}

    assert list(rows) == ["layer1.conv1", "layer1.conv2", "layer2.conv1"]
    assert [(row.position_count, row.kept_count, row.state) for row in report.positions] == [
        (16, 8, "conforming"),
        (16, 8, "conforming"),
        (4, 2, "conforming"),
    ]
    share = shares["layer1.conv1"]
    assert share is not None
    assert rows["layer1.conv1"].mac_share == pytest.approx(share / 2)
    assert rows["layer1.conv1"].why == "8 of 4 x 4 positions hold the bias of layer1.conv1"
    (line,) = [str(line) for line in lint_table(report) if str(line).startswith("positions of layer1.conv1")]
    assert f"({share / 2:.1%} of the file's MACs)" in line


def test_the_limit_counts_dropped_positions_and_zeros_together() -> None:
    plain, both = report_of(SPARSE), report_of(masked())
    only = report_of(masked(DENSE_WITHOUT_ROLE))
    shares = {layer.node: layer.mac_share or 0.0 for layer in plain.layers}
    halved = sum(shares[layer] for layer in ("layer1.conv1", "layer1.conv2", "layer2.conv1"))
    # Half of the positions: of a layer that is 2:4 too a quarter of the arithmetic is left
    assert only.amdahl_limit == pytest.approx(1 / (1 - halved / 2))
    assert both.amdahl_limit == pytest.approx(1 / (1 - halved * 3 / 4 - shares["layer2.conv2"] / 2))


DENSE_WITHOUT_ROLE = onnx.ModelProto()
DENSE_WITHOUT_ROLE.CopyFrom(DENSE)
del DENSE_WITHOUT_ROLE.metadata_props[:]


def _digest_of_another_mask(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _note(where, "masksparse.positions").value = PositionMask(layer="layer1.conv1", keep=np.eye(4, dtype=np.bool_)).digest


def _another_mask(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _put(model, where.input[0], np.eye(4, dtype=np.bool_)[None, None])


def _another_layer(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _note(where, "masksparse.positions_layer").value = "layer1.conv2"


def _no_layer(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    where.metadata_props.remove(_note(where, "masksparse.positions_layer"))


def _zeros_for_the_bias(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _put(model, where.input[2], np.zeros((1, 16, 1, 1), dtype=np.float32))


def _all_kept(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _put(model, where.input[0], np.ones((1, 1, 4, 4), dtype=np.bool_))


def _none_kept(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _put(model, where.input[0], np.zeros((1, 1, 4, 4), dtype=np.bool_))


def _another_size(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    _put(model, where.input[0], np.ones((1, 1, 1, 4), dtype=np.bool_))


def _elsewhere(model: onnx.ModelProto, where: onnx.NodeProto) -> None:
    relu = next(node for node in model.graph.node if node.op_type == "Relu")
    relu.metadata_props.add(key="masksparse.positions", value="0" * 64)


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (_digest_of_another_mask, "is not the digest of the mask of layer1.conv1 that is there"),
        (_another_mask, "is not the digest of the mask of layer1.conv1 that is there"),
        (_another_layer, "is not the digest of the mask of layer1.conv2 that is there"),
        (_no_layer, "masksparse.positions_layer is missing"),
        (_zeros_for_the_bias, "dropped positions hold something else than the bias of layer1.conv1 in 16 of 16 channels"),
        (_all_kept, "the mask drops none of 16 positions"),
        (_none_kept, "the mask keeps none of 16 positions"),
        (_another_size, r"has \(1, 4\) positions, the convolution \(4, 4\)"),
        (_elsewhere, "is annotated with masksparse.positions, but it is a Relu of 1 inputs"),
    ],
)
def test_planted_faults_are_broken_claims(fault: Callable[[onnx.ModelProto, onnx.NodeProto], None], why: str) -> None:
    model = masked()
    fault(model, next(node for node in model.graph.node if node.op_type == "Where"))
    report = report_of(model)

    assert not report.ok
    (broken,) = [row for row in report.positions if row.state == "broken claim"]
    assert re.search(why, broken.why)
    assert any("broken claim" in str(line) and why[:20] in str(line) for line in lint_table(report)) or "\\" in why


def test_a_dense_twin_with_masked_positions_is_a_broken_claim() -> None:
    report = report_of(masked(DENSE))
    assert not report.ok
    assert report.findings == (
        "the file says masksparse.role dense, but layer1.conv1.positions is annotated with masked positions",
    )


def test_positions_alone_make_a_sparse_file() -> None:
    model = masked(DENSE)
    next(entry for entry in model.metadata_props if entry.key == "masksparse.role").value = "sparse"
    assert report_of(model).ok

    for node in model.graph.node:
        del node.metadata_props[:]
    assert "no layer is annotated with a pattern, or has one" in report_of(model).findings[0]


def test_positions_of_a_convolution_in_a_body_are_refused() -> None:
    convolution = helper.make_node("Conv", ["x", "w"], ["inside"], name="conv", kernel_shape=[1, 1])
    where = helper.make_node("Where", ["keep", "inside", "constant"], ["chosen"], name="where")
    where.metadata_props.add(key="masksparse.positions", value="0" * 64)
    value = helper.make_tensor_value_info("chosen", onnx.TensorProto.FLOAT, ["n", 1, 2, 2])
    branches = {
        f"{branch}_branch": helper.make_graph([convolution, where] if branch == "then" else [_copied()], branch, [], [output])
        for branch, output in (("then", value), ("else", _named(value, "copy")))
    }
    graph = helper.make_graph(
        [helper.make_node("If", ["condition"], ["y"], name="choice", **branches)],
        "graph",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 1, 2, 2])],
        [_named(value, "y")],
        [
            numpy_helper.from_array(np.array(True), "condition"),
            numpy_helper.from_array(np.ones((1, 1, 1, 1), np.float32), "w"),
            numpy_helper.from_array(np.eye(2, dtype=np.bool_)[None, None], "keep"),
            numpy_helper.from_array(np.zeros((1, 1, 1, 1), np.float32), "constant"),
        ],
    )
    report = report_of(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10))
    (row,) = report.positions
    assert row.state == "broken claim"
    assert row.why.startswith("in then_branch of If choice: only positions of convolutions of the main graph")


def _copied() -> onnx.NodeProto:
    return helper.make_node("Identity", ["x"], ["copy"], name="copy")


def _named(value: onnx.ValueInfoProto, name: str) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    return copy


def _note(where: onnx.NodeProto, key: str) -> onnx.StringStringEntryProto:
    entries: list[onnx.StringStringEntryProto] = [entry for entry in where.metadata_props if entry.key == key]
    return entries[0]


def _put(model: onnx.ModelProto, name: str, array: object) -> None:
    del model.graph.value_info[:]
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    tensor.CopyFrom(numpy_helper.from_array(np.asarray(array), name))
