"""The checker passes what was baked, and finds every planted fault."""

from collections.abc import Callable

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.bake.conformity import Conformity, check_conformity, nonzeros_per_group
from masksparse_deploy.bake.twins import changed_constants, structural_differences
from masksparse_deploy.core.groups import count_kept
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph
from tests.models.make_onnx import MASKED_LAYERS, residual_masks, residual_pair, residual_weights

LAYER = "layer1.conv1"
WEIGHT = "layer1.conv1.weight"


def check(model: onnx.ModelProto) -> Conformity:
    return check_conformity(parse_graph(model.SerializeToString(), name="sparse.onnx"), residual_masks())


def initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def set_values(model: onnx.ModelProto, name: str, values: np.ndarray) -> None:
    initializer(model, name).raw_data = values.astype(np.float32).tobytes()


def set_property(properties: list[onnx.StringStringEntryProto], key: str, value: str | None) -> None:
    (entry,) = [entry for entry in properties if entry.key == key]
    if value is None:
        properties.remove(entry)
    else:
        entry.value = value


def test_a_baked_file_conforms() -> None:
    conformity = check(residual_pair()[1])
    assert conformity.findings == ()
    assert tuple(layer.layer for layer in conformity.layers) == MASKED_LAYERS
    first = conformity.layers[0]
    assert (first.node, first.initializer, first.shape) == (LAYER, WEIGHT, (16, 16, 3, 3))
    assert (first.density, first.group_count, first.violation_count) == (0.5, 16 * 4 * 9, 0)
    assert first.mask_sha256 == residual_masks().layers[WEIGHT].digest


def put_a_nonzero_back(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(initializer(model, WEIGHT)).copy()
    values[0, np.flatnonzero(values[0, :, 0, 0] == 0)[0], 0, 0] = 1e-30
    set_values(model, WEIGHT, values)


def groups_along_the_taps(model: onnx.ModelProto) -> None:
    dense = residual_weights()[WEIGHT]
    flat = dense.reshape(16, -1)
    keep = NMPattern(n=2, m=4).keep_largest(np.abs(flat), group_axis=1).reshape(dense.shape)
    set_values(model, WEIGHT, np.where(keep, dense, 0))


def mask_of_another_layer(model: onnx.ModelProto) -> None:
    set_values(model, WEIGHT, np.where(residual_masks().layers["layer1.conv2.weight"].keep, residual_weights()[WEIGHT], 0))


def a_kept_weight_dropped(model: onnx.ModelProto) -> None:
    values = numpy_helper.to_array(initializer(model, WEIGHT)).copy()
    values[tuple(np.argwhere(values != 0)[0])] = 0
    set_values(model, WEIGHT, values)


def no_node_annotation(model: onnx.ModelProto) -> None:
    del node(model, LAYER).metadata_props[:]


def no_initializer_annotation(model: onnx.ModelProto) -> None:
    set_property(initializer(model, WEIGHT).metadata_props, keys.PATTERN, None)


def wrong_axis_annotated(model: onnx.ModelProto) -> None:
    set_property(node(model, LAYER).metadata_props, keys.GROUP_AXIS, "0")


def wrong_mask_digest(model: onnx.ModelProto) -> None:
    set_property(initializer(model, WEIGHT).metadata_props, keys.MASK_SHA256, "0" * 64)


def wrong_set_digest(model: onnx.ModelProto) -> None:
    set_property(model.metadata_props, keys.MASK_SET_SHA256, "0" * 64)


def called_dense(model: onnx.ModelProto) -> None:
    set_property(model.metadata_props, keys.ROLE, "dense")


def no_reason_for_a_dense_layer(model: onnx.ModelProto) -> None:
    del node(model, "stem").metadata_props[:]


def dense_layer_annotated_as_masked(model: onnx.ModelProto) -> None:
    node(model, "stem").metadata_props.add(key=keys.PATTERN, value="2:4")


def layer_renamed(model: onnx.ModelProto) -> None:
    initializer(model, WEIGHT).name = "other"
    node(model, LAYER).input[1] = "other"


@pytest.mark.parametrize(
    ("fault", "finding"),
    [
        (put_a_nonzero_back, "layer1.conv1: 1 of 576 groups keep more than 2 of 4"),
        (put_a_nonzero_back, "layer1.conv1: 1 weights that the mask drops are not zero"),
        (groups_along_the_taps, "groups keep more than 2 of 4"),
        (mask_of_another_layer, "weights that the mask drops are not zero"),
        (a_kept_weight_dropped, "node layer1.conv1: masksparse.density is 0.5, expected 0.49"),
        (no_node_annotation, "node layer1.conv1: masksparse.pattern is missing, expected 2:4"),
        (no_initializer_annotation, "initializer layer1.conv1.weight: masksparse.pattern is missing, expected 2:4"),
        (wrong_axis_annotated, "node layer1.conv1: masksparse.group_axis is 0, expected 1"),
        (wrong_mask_digest, "initializer layer1.conv1.weight: masksparse.mask_sha256 is 0000"),
        (wrong_set_digest, "model: masksparse.mask_set_sha256 is 0000"),
        (called_dense, "model: masksparse.role is dense, expected sparse"),
        (no_reason_for_a_dense_layer, "node stem: stays dense, but masksparse.dense_reason is missing"),
        (dense_layer_annotated_as_masked, "node stem: is annotated as masked, but the mask set has no mask for it"),
        (layer_renamed, "layer1.conv1.weight: the file has no convolution or matrix product with this weight"),
    ],
)
def test_planted_faults_are_found(fault: Callable[[onnx.ModelProto], None], finding: str) -> None:
    model = residual_pair()[1]
    fault(model)
    findings = check(model).findings
    assert any(finding in text for text in findings), findings


@hypothesis.given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    size=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_group_counts_against_a_plain_loop(shape: list[int], axis: int, size: int, seed: int) -> None:
    axis %= len(shape)
    weight = np.random.default_rng(seed).integers(-1, 2, shape).astype(np.float32)
    counts = nonzeros_per_group(weight, axis=axis, size=size)
    moved, counted = np.moveaxis(weight, axis, -1), np.moveaxis(counts, axis, -1)
    for index in np.ndindex(*counted.shape):
        group = moved[index[:-1]][index[-1] * size : (index[-1] + 1) * size]
        assert counted[index] == np.count_nonzero(group)
    if shape[axis] % size == 0:
        np.testing.assert_array_equal(counted, np.moveaxis(count_kept(weight != 0, axis=axis, size=size), axis, -1))


def test_twins_differ_in_masked_values_only() -> None:
    dense, sparse = (parse_graph(model.SerializeToString(), name="twin") for model in residual_pair())
    assert structural_differences(dense, sparse) == ()
    assert changed_constants(dense, sparse) == tuple(f"{layer}.weight" for layer in MASKED_LAYERS)


def other_edge(model: onnx.ModelProto) -> None:
    node(model, "layer1.relu1").input[0] = "pool.out"


def other_attribute(model: onnx.ModelProto) -> None:
    next(entry for entry in node(model, "stem").attribute if entry.name == "pads").ints[:] = [2, 2, 0, 0]


def other_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 19


def other_constant(model: onnx.ModelProto) -> None:
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float32), "extra"))


def other_shape(model: onnx.ModelProto) -> None:
    tensor = initializer(model, "fc.bias")
    tensor.CopyFrom(numpy_helper.from_array(np.zeros(1, np.float32), "fc.bias"))


def other_type(model: onnx.ModelProto) -> None:
    initializer(model, "fc.bias").CopyFrom(numpy_helper.from_array(np.zeros(10), "fc.bias"))


def node_removed(model: onnx.ModelProto) -> None:
    node(model, "layer1.conv1").input[0] = "stem.out"
    model.graph.node.remove(node(model, "layer1.relu1"))
    node(model, "layer1.conv2").input[0] = "layer1.conv1.out"


@pytest.mark.parametrize(
    ("fault", "difference"),
    [
        (other_edge, "node layer1.relu1 (Relu)"),
        (other_attribute, "node stem (Conv)"),
        (other_opset, "opsets: "),
        (other_constant, "constant extra: in one file only"),
        (other_shape, "constant fc.bias: float32 (10,) and float32 (1,)"),
        (other_type, "constant fc.bias: float32 (10,) and float64 (10,)"),
        (node_removed, "17 and 16 nodes"),
    ],
)
def test_structural_faults_are_found(fault: Callable[[onnx.ModelProto], None], difference: str) -> None:
    dense, sparse = residual_pair()
    fault(sparse)
    differences = structural_differences(
        parse_graph(dense.SerializeToString(), name="dense"), parse_graph(sparse.SerializeToString(), name="sparse")
    )
    assert any(difference in text for text in differences), differences
