"""A rewritten file is held against the sparse one: the same function passes, and every planted fault is found."""

from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, numpy_helper

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.rewrite import verify
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from tests.rewrite.models import Array, residual_blocks

HALF = BlockPattern(n=4, rate=0.5)
LAYERS = ("conv1", "conv2", "conv3")


def rewritten_pair(**options: int) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    sparse = residual_blocks(HALF)
    model = ir.from_proto(sparse)
    gather_blocks(model, LAYERS, **options)
    return sparse, ir.to_proto(model)


def differences(sparse: onnx.ModelProto, rewritten: onnx.ModelProto) -> tuple[str, ...]:
    graphs = [
        parse_graph(model.SerializeToString(), name=name) for model, name in ((sparse, "sparse"), (rewritten, "rewritten"))
    ]
    return verify.differences(*graphs)


def node(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    return next(node for node in model.graph.node if node.name == name)


def edit(model: onnx.ModelProto, name: str, change: Callable[[Array], None]) -> None:
    """Change an initializer in place."""
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    array = numpy_helper.to_array(tensor).copy()
    change(array)
    tensor.CopyFrom(numpy_helper.from_array(array, name))


def swap_indices(model: onnx.ModelProto) -> None:
    edit(model, "conv1/channels/indices", lambda indices: indices.__setitem__([0, 1], indices[[1, 0]]))


def change_weight(model: onnx.ModelProto) -> None:
    # the smallest change there is: the last bit of one weight
    edit(
        model,
        "conv2.weight/groups",
        lambda weight: weight.view(np.uint32).ravel().__setitem__(0, weight.view(np.uint32).flat[0] ^ 1),
    )


def zero_weight(model: onnx.ModelProto) -> None:
    edit(model, "conv2.weight/groups", lambda weight: weight.ravel().__setitem__(5, 0))


def lose_bias(model: onnx.ModelProto) -> None:
    del node(model, "conv3").input[2]


def change_bias(model: onnx.ModelProto) -> None:
    edit(model, "conv3.bias", lambda bias: bias.__setitem__(3, bias[3] + 1))


def change_stride(model: onnx.ModelProto) -> None:
    (strides,) = (attribute for attribute in node(model, "conv3").attribute if attribute.name == "strides")
    strides.ints[:] = [1, 1]


def change_pads(model: onnx.ModelProto) -> None:
    # the output keeps its shape
    (pads,) = (attribute for attribute in node(model, "conv1").attribute if attribute.name == "pads")
    pads.ints[:] = [2, 1, 0, 1]


def other_groups(model: onnx.ModelProto) -> None:
    (groups,) = (attribute for attribute in node(model, "conv1").attribute if attribute.name == "group")
    groups.i = 2
    del model.graph.value_info[:]  # tells the shape before
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "conv1.weight/groups")
    wide = np.concatenate([numpy_helper.to_array(tensor)] * 2, axis=1)
    tensor.CopyFrom(numpy_helper.from_array(wide, tensor.name))


def other_source(model: onnx.ModelProto) -> None:
    node(model, "conv2/channels").input[0] = "b"


def twice_a_channel(model: onnx.ModelProto) -> None:
    edit(model, "conv1/channels/indices", lambda indices: indices.__setitem__(0, indices[1]))


def extra_relu(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["g"], ["more"], name="more"))


def extra_scale(model: onnx.ModelProto) -> None:
    """An operator in between, under a new name."""
    position = [node.name for node in model.graph.node].index("add")
    model.graph.node.insert(position, helper.make_node("Relu", ["e"], ["e2"], name="between"))
    node(model, "add").input[0] = "e2"


def unused_gather(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Gather", ["g", "conv1/channels/indices"], ["more"], name="more", axis=1))


def another_activation(model: onnx.ModelProto) -> None:
    node(model, "add.relu").op_type = "Tanh"


def change_stem(model: onnx.ModelProto) -> None:
    edit(model, "stem.weight", lambda weight: weight.__imul__(np.float32(2)))


def swapped_operands(model: onnx.ModelProto) -> None:
    node(model, "add").input[1] = "d"


def missing_tail(model: onnx.ModelProto) -> None:
    del model.graph.node[-1]
    model.graph.output[0].name = "h"


def operator_without_inputs(model: onnx.ModelProto) -> None:
    model.graph.node.insert(0, helper.make_node("RandomNormal", [], ["noise"], name="noise", shape=[1, 16, 1, 1]))


def slice_by_scalars(model: onnx.ModelProto) -> None:
    numbers = {"start": 0, "end": 16, "axis": 1}
    model.graph.initializer.extend(numpy_helper.from_array(np.array(value), name) for name, value in numbers.items())
    gather = node(model, "conv1/channels")
    gather.CopyFrom(helper.make_node("Slice", [gather.input[0], *numbers], [*gather.output], name=gather.name))


def pool_along_three_axes(model: onnx.ModelProto) -> None:
    sizes = {"kernel_shape": [1, 1, 1], "strides": [1, 1, 1]}
    model.graph.node.append(helper.make_node("AveragePool", ["g"], ["more"], name="more", **sizes))


def stride_along_three_axes(model: onnx.ModelProto) -> None:
    (strides,) = (attribute for attribute in node(model, "conv3").attribute if attribute.name == "strides")
    strides.ints[:] = [2, 2, 2]


def no_groups(model: onnx.ModelProto) -> None:
    (groups,) = (attribute for attribute in node(model, "conv1").attribute if attribute.name == "group")
    groups.i = 0


def indices_that_are_no_integers(model: onnx.ModelProto) -> None:
    node(model, "conv1/channels").input[1] = "conv1.bias"


FAULTS = [
    (swap_indices, "Conv conv1: its weights are not the sparse file's, in 4 of 16 output channels"),
    (change_weight, "Conv conv2: its weights are not the sparse file's, in 1 of 16 output channels"),
    (zero_weight, "Conv conv2: its weights are not the sparse file's, in 1 of 16 output channels"),
    (lose_bias, "Conv conv3: it has a bias, or a computed one, in one of the files only"),
    (change_bias, "Conv conv3: it has another bias"),
    (change_stride, "Conv conv3: it has the attributes"),
    (change_pads, "Conv conv1: it has the attributes"),
    (other_groups, "Conv conv1: group 0 reads a channel twice"),
    (other_source, "Conv conv2: it reads b, in the sparse file d"),
    (twice_a_channel, "Conv conv1: group 0 reads a channel twice"),
    (extra_relu, "Relu more is not in the sparse file, and is no known part of a rewritten layer"),
    (extra_scale, "Relu between is not in the sparse file"),
    (unused_gather, "more is computed, but nothing reads it"),
    (another_activation, "Tanh add.relu is not Relu add.relu of the sparse file"),
    (change_stem, "Conv stem: its weights are not the sparse file's, in 16 of 16 output channels"),
    (swapped_operands, "Add add is not Add add of the sparse file"),
    (operator_without_inputs, "RandomNormal noise is not in the sparse file"),
    (slice_by_scalars, "Slice conv1/channels is not in the sparse file"),
    (pool_along_three_axes, "AveragePool more is not in the sparse file"),
    (indices_that_are_no_integers, "Gather conv1/channels is not in the sparse file"),
    (no_groups, "Conv conv1: 0 groups with weights float32"),
    (stride_along_three_axes, "Conv conv3: it has the attributes"),
    (missing_tail, "GlobalAveragePool pool of the sparse file is missing"),
]


@pytest.mark.parametrize("options", [{}, {"multiple": 6}, {"smallest_group": 8}])
def test_a_rewritten_file_is_the_same_function(options: dict[str, int]) -> None:
    assert differences(*rewritten_pair(**options)) == ()


def test_a_file_is_its_own_function() -> None:
    sparse = residual_blocks(HALF)
    assert differences(sparse, sparse) == ()


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_planted_faults_are_found(plant: Callable[[onnx.ModelProto], None], expected: str) -> None:
    sparse, rewritten = rewritten_pair()
    plant(rewritten)
    found = differences(sparse, rewritten)
    assert any(expected in line for line in found), found


def with_computed_bias() -> onnx.ModelProto:
    """The second convolution adds the means of what it reads, and their negatives are computed, too."""
    model = residual_blocks(HALF)
    place = [node.name for node in model.graph.node].index("conv2")
    model.graph.initializer.append(numpy_helper.from_array(np.array([0, 2, 3]), "axes"))
    model.graph.node.insert(place, helper.make_node("ReduceMean", ["d", "axes"], ["mean"], name="mean", keepdims=0))
    model.graph.node.insert(place + 1, helper.make_node("Neg", ["mean"], ["negative"], name="neg"))
    node(model, "conv2").input[2] = "mean"
    return model


@pytest.mark.parametrize(
    ("bias", "expected"),
    [
        ("mean", None),
        ("negative", "Conv conv2: its bias is not mean of the sparse file"),
        ("own", "Conv conv2: it has a bias, or a computed one, in one of the files only"),
        (None, "Conv conv2: it has a bias, or a computed one, in one of the files only"),
    ],
)
def test_a_bias_that_is_computed_is_followed(bias: str | None, expected: str | None) -> None:
    sparse = with_computed_bias()
    model = ir.from_proto(sparse)
    gather_blocks(model, LAYERS)
    rewritten = ir.to_proto(model)
    rewritten.graph.initializer.append(numpy_helper.from_array(np.ones(16, dtype=np.float32), "own"))
    if bias is None:
        del node(rewritten, "conv2").input[2]
    else:
        node(rewritten, "conv2").input[2] = bias
    assert differences(sparse, rewritten) == (() if expected is None else (expected,))


@pytest.mark.parametrize("value", [1.0, 2.0])
def test_an_output_that_is_a_constant_must_be_the_same(value: float) -> None:
    sparse, rewritten = rewritten_pair()
    for model, number in ((sparse, 1.0), (rewritten, value)):
        model.graph.initializer.append(numpy_helper.from_array(np.float32([number]), "k"))
        model.graph.output.append(helper.make_tensor_value_info("k", onnx.TensorProto.FLOAT, [1]))
    found = differences(sparse, rewritten)
    assert found == (() if value == 1 else ("k, an output or what a body reads, is not the sparse file's constant",))


def test_an_operator_whose_first_output_is_left_out_is_known() -> None:
    sparse = residual_blocks(HALF)
    weights = np.random.default_rng(4).standard_normal((1, 8, 36), dtype=np.float32)
    constants = {"W": weights[..., :32], "R": weights[..., 32:34], "shape": np.array([-1, 1, 32])}
    sparse.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    node(sparse, "pool").output[0] = "pooled"
    sparse.graph.node.append(helper.make_node("Reshape", ["pooled", "shape"], ["sequence"], name="sequence"))
    sparse.graph.node.append(helper.make_node("LSTM", ["sequence", "W", "R"], ["", "y"], name="lstm", hidden_size=2))
    sparse.graph.output[0].type.tensor_type.ClearField("shape")
    sparse.graph.output[0].type.tensor_type.shape.dim.extend(onnx.TensorShapeProto.Dimension() for _ in range(3))
    model = ir.from_proto(sparse)
    gather_blocks(model, LAYERS)
    assert differences(sparse, ir.to_proto(model)) == ()
