"""Output channels that nobody reads are left out, those that somebody reads never; the function stays."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import onnx.checker
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.rewrite.blocks import channelwise
from masksparse_deploy.rewrite.blocks.gather import gather_blocks
from masksparse_deploy.rewrite.blocks.unread import kept_outputs, leave_out_unread
from tests.rewrite.blocks.test_gather import operators, shapes
from tests.rewrite.models import Array, assert_same_function, conv, layer_constants, model_of
from tests.rewrite.test_verify import differences, edit, node

LAYERS = ("conv1", "conv2")
BLOCK = 2


def blocks(out_channels: int, in_channels: int, reads: list[list[int]], seed: int = 0, kernel: int = 3) -> Array:
    """A weight whose groups of equal size read these input channels."""
    weight = np.random.default_rng(seed).standard_normal((out_channels, in_channels, kernel, kernel)) / (3 * kernel)
    keep = np.zeros((len(reads), in_channels), dtype=np.bool_)
    for group, channels in enumerate(reads):
        keep[group, channels] = True
    return np.where(np.repeat(keep, out_channels // len(reads), axis=0)[..., None, None], weight, 0).astype(np.float32)


def chain(
    reads: list[list[int]],
    between: list[onnx.NodeProto] | None = None,
    more: list[onnx.NodeProto] | None = None,
    constants: dict[str, Array] | None = None,
    **geometry: Any,
) -> onnx.ModelProto:
    """A convolution to 8 channels in two groups, Relu, and one to 6 channels whose two groups read `reads` of the 8.

    `between` are the operators from "a" to "b" in place of the Relu, `more` operators on these and on "out", the last tensor.
    """
    nodes = [
        conv("conv1", "x", "a"),
        *(between or [helper.make_node("Relu", ["a"], ["b"], name="relu")]),
        conv("conv2", "b", "out", **geometry),
        *(more or [helper.make_node("GlobalAveragePool", ["out"], ["y"], name="pool")]),
    ]
    kernel = geometry.get("kernel_shape", [3])[0]
    stored = layer_constants("conv1", blocks(8, 4, [[0, 1], [1, 3]], 1)) | layer_constants(
        "conv2", blocks(6, 8, reads, 2, kernel)
    )
    return model_of(nodes, stored | (constants or {}), dict.fromkeys(LAYERS, "1x4@0.5") | {"conv2": "1x3@0.5"})


def without_unread(
    before: onnx.ModelProto, layers: tuple[str, ...] = LAYERS, block: int = BLOCK, **options: int
) -> onnx.ModelProto:
    """Gathered, and without what nobody reads; the shapes must be those that ONNX infers, and the function the same."""
    model = ir.from_proto(before)
    gather_blocks(model, layers, **options)
    known = {name for entry in before.graph.node for name in entry.output} | {t.name for t in before.graph.initializer}
    leave_out_unread(model, known, block)
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert_same_function(before, after)
    assert differences(before, after) == ()
    return after


def computed(model: onnx.ModelProto, name: str = "conv1") -> tuple[str, list[int]] | None:
    """What a convolution says it computes."""
    found = {entry.key: entry.value for entry in node(model, name).metadata_props}
    return (found[keys.HELD_TENSOR], [*map(int, found[keys.HELD_CHANNELS].split())]) if keys.HELD_TENSOR in found else None


def indices(model: onnx.ModelProto, name: str) -> list[int]:
    return [int(i) for i in numpy_helper.to_array(next(t for t in model.graph.initializer if t.name == name))]


def groups(model: onnx.ModelProto, name: str) -> int:
    return int(helper.get_node_attr_value(node(model, name), "group"))


def test_groups_compute_what_is_read() -> None:
    after = without_unread(chain([[0, 2, 5], [0, 5, 7]]))
    assert computed(after) == ("a", [0, 2, 5, 7])
    assert shapes(after)["conv1.weight/groups/read"] == (4, 2, 3, 3) and groups(after, "conv1") == 2
    assert indices(after, "conv2/channels/indices") == [0, 1, 2, 0, 2, 3]
    # what holds fewer channels has other names than the whole tensors, and nothing of these stays behind
    assert [entry.output[0] for entry in after.graph.node if entry.name in ("conv1", "relu")] == ["a/read", "b/read"]
    assert not {"conv1.weight", "conv1.bias", "conv1.weight/groups"} & shapes(after).keys()


def test_groups_are_filled_up_to_the_block() -> None:
    after = without_unread(chain([[1], [6]]))
    assert computed(after) == ("a", [0, 1, 4, 6])  # the first that are not read beside those that are
    assert indices(after, "conv2/channels/indices") == [1, 3]


def test_a_group_of_which_more_is_read_becomes_several() -> None:
    after = without_unread(chain([[0, 1, 2], [1, 3, 7]]))
    assert computed(after) == ("a", [0, 1, 2, 3, 4, 7]) and groups(after, "conv1") == 3
    # two groups read what the first one read, the third what the second one read
    assert indices(after, "conv1/channels/indices_") == [0, 1, 0, 1, 1, 3]
    assert "conv1/channels/indices" not in shapes(after)


def test_a_group_of_which_nothing_is_read_is_left_out_with_what_it_reads() -> None:
    """The stem then computes only what the remaining group reads, two of its four channels."""
    before = chain([[4, 5, 7], [5, 6]])
    before.graph.node.insert(0, conv("stem", "x", "s", kernel_shape=[1, 1], pads=None))
    constants = layer_constants("stem", np.random.default_rng(3).standard_normal((4, 4, 1, 1), dtype=np.float32))
    before.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    node(before, "conv1").input[0] = "s"
    after = without_unread(before)
    assert computed(after) == ("a", [4, 5, 6, 7]) and groups(after, "conv1") == 1
    assert computed(after, "stem") == ("s", [1, 3])
    assert operators(after)["Gather"] == 1 and node(after, "conv1").input[0] == "s/read"


def test_channels_in_a_row_stay_a_slice() -> None:
    after = without_unread(chain([[5, 6, 7]] * 2), smallest_group=6)
    # the groups of the first layer are joined too, so that any channel may fill up
    assert operators(after)["Slice"] == 1 and computed(after) == ("a", [0, 5, 6, 7])
    assert (indices(after, "conv2/channels/start"), indices(after, "conv2/channels/end")) == ([1], [4])


def test_all_channels_in_their_order_need_no_selection() -> None:
    after = without_unread(chain([[5, 6]] * 2), smallest_group=6)
    assert operators(after) == {"Gather": 1, "Conv": 2, "Relu": 1, "GlobalAveragePool": 1}
    assert computed(after) == ("a", [5, 6]) and node(after, "conv2").input[0] == "b/read"
    assert not [name for name in shapes(after) if name.startswith("conv2/channels")]


def test_strided_layers_select_positions_of_fewer_channels() -> None:
    after = without_unread(chain([[0, 2], [5, 7]], kernel_shape=[1, 1], pads=None, strides=[2, 2]))
    assert operators(after)["AveragePool"] == 1 and computed(after) == ("a", [0, 2, 5, 7])


@pytest.mark.parametrize(
    ("between", "constants"),
    [
        ([helper.make_node("MaxPool", ["a"], ["b"], name="m", kernel_shape=[2, 2])], {}),
        ([helper.make_node("Clip", ["a", "", "six"], ["b"], name="clip")], {"six": np.float32(6)}),
        (
            [
                helper.make_node("HardSigmoid", ["a"], ["h"], name="h"),
                helper.make_node("Mul", ["h", "a"], ["m"], name="m"),
                helper.make_node("Div", ["m", "two"], ["b"], name="d"),
            ],
            {"two": np.full((1, 1, 1, 1), 2, np.float32)},
        ),
    ],
    ids=["pooling", "bounds", "product"],
)
def test_operators_that_act_on_each_channel_alone_lie_between(
    between: list[onnx.NodeProto], constants: dict[str, Array]
) -> None:
    after = without_unread(chain([[0, 2], [5, 7]], between, constants=constants))
    assert computed(after) == ("a", [0, 2, 5, 7])


def test_every_operator_that_is_followed_is_read_back() -> None:
    """All of one tensor, one behind the other; what each is held to is the whole tensor that it makes part of."""
    names = sorted(channelwise._UNARY - {"MaxPool", "Clip"})
    tensors = ["a", *(f"t{index}" for index in range(1, len(names))), "b"]
    between = [helper.make_node(name, [tensors[index]], [tensors[index + 1]], name=name) for index, name in enumerate(names)]
    assert computed(without_unread(chain([[0, 2], [5, 7]], between))) == ("a", [0, 2, 5, 7])


def test_groups_of_the_sparse_file_stay() -> None:
    before = chain([[0, 2], [5, 7]])
    weight = blocks(8, 2, [[0, 1]])
    next(t for t in before.graph.initializer if t.name == "conv1.weight").CopyFrom(
        numpy_helper.from_array(weight, "conv1.weight")
    )
    node(before, "conv1").attribute.append(helper.make_attribute("group", 2))
    assert computed(without_unread(before, ("conv2",))) is None


def test_a_dense_layer_computes_what_is_read() -> None:
    after = without_unread(chain([[0, 2], [5, 7]]), ("conv2",))
    assert computed(after) == ("a", [0, 2, 5, 7]) and shapes(after)["conv1.weight/read"] == (4, 4, 3, 3)


def also_read(name: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("GlobalAveragePool", ["out"], ["p"], name="pool"),
        helper.make_node("GlobalAveragePool", [name], ["q"], name="pool2"),
        helper.make_node("Concat", ["p", "q"], ["y"], name="both", axis=1),
    ]


def read_in_a_body() -> list[onnx.NodeProto]:
    outputs = [helper.make_tensor_value_info("inside", TensorProto.FLOAT, None)]
    names = {"then_branch": "b", "else_branch": "out"}
    bodies = {
        branch: helper.make_graph([helper.make_node("GlobalAveragePool", [name], ["inside"])], branch, [], outputs)
        for branch, name in names.items()
    }
    return [helper.make_node("If", ["yes"], ["y"], name="branch", **bodies)]


PER_CHANNEL = np.arange(8, dtype=np.float32).reshape(1, 8, 1, 1)


@pytest.mark.parametrize(
    "before",
    [
        chain([[0, 2], [5, 7]], more=also_read("b")),
        chain([[0, 2], [5, 7]], more=also_read("a")),
        chain([[0, 2], [5, 7]], more=read_in_a_body(), constants={"yes": np.array(True)}),
        chain([[0, 2], [5, 7]], [helper.make_node("Add", ["a", "k"], ["b"], name="add")], constants={"k": PER_CHANNEL}),
        chain([[0, 2], [5, 7]], [helper.make_node("Softmax", ["a"], ["b"], name="soft", axis=1)]),
        chain([[0, 1, 2], [3, 5, 6, 7]]),
    ],
    ids=["read again", "read before Relu", "read in a body", "a constant for each channel", "channels mixed", "all needed"],
)
def test_what_is_read_otherwise_is_computed_whole(before: onnx.ModelProto) -> None:
    assert computed(without_unread(before)) is None


def test_an_output_of_the_network_is_computed_whole() -> None:
    before = chain([[0, 2], [5, 7]])
    before.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, ["batch", 8, 6, 6]))
    assert computed(without_unread(before)) is None


def test_a_tensor_that_a_dense_layer_reads_is_computed_whole() -> None:
    assert computed(without_unread(chain([[0, 2], [5, 7]]), ("conv1",))) is None


@pytest.mark.parametrize(
    ("needed", "groups", "block", "expected"),
    [
        ([15, 11], 2, 16, [16, 16]),
        ([17, 11], 2, 16, [16, 16, 16]),
        ([17, 17], 2, 16, None),
        ([33, 40], 2, 16, [48, 48]),  # of groups of 64
        ([0, 20], 2, 16, [32]),
        ([64, 0], 2, 16, [64]),
        ([3, 3], 2, 16, [16, 16]),
        ([5], 1, 16, [16]),
        ([100], 1, 16, [112]),
        ([5, 6], 2, 8, [8, 8]),
        ([3, 2], 2, 32, None),  # of groups of 32: not a whole block less
    ],
)
def test_the_width_that_computes_least(needed: list[int], groups: int, block: int, expected: list[int] | None) -> None:
    size = 128 if groups == 1 else 64 if max(needed) > 32 else 32
    is_read = np.zeros((groups, size), dtype=np.bool_)
    for group, count in enumerate(needed):
        is_read[group, size - count :] = True
    kept = kept_outputs(is_read.ravel(), groups, block)
    assert (None if kept is None else [len(group.rows) for group in kept]) == expected
    if kept is not None:
        rows = np.concatenate([group.rows for group in kept])
        assert set(np.flatnonzero(is_read)) <= set(rows.tolist()) and len(np.unique(rows)) == len(rows)
        assert all((group.rows // size == group.origin).all() for group in kept)


def claim(model: onnx.ModelProto, text: str, key: str = keys.HELD_CHANNELS) -> None:
    next(entry for entry in node(model, "conv1").metadata_props if entry.key == key).value = text


def read_another_channel(model: onnx.ModelProto) -> None:
    edit(model, "conv2/channels/indices", lambda places: places.__setitem__(0, 3))


def leave_a_read_channel_out(model: onnx.ModelProto) -> None:
    """Channel 7 is not computed: the last group computes 4 and 5 in place of 5 and 7, and says so."""
    full, bias = (
        numpy_helper.to_array(tensor) for tensor in chain([[0], [0]]).graph.initializer if tensor.name.startswith("conv1.")
    )
    edit(model, "conv1.weight/groups/read", lambda weight: weight.__setitem__([2, 3], full[4:6][:, [1, 3]]))
    edit(model, "conv1.bias/read", lambda values: values.__setitem__([2, 3], bias[4:6]))
    claim(model, "0 2 4 5")
    edit(model, "conv2/channels/indices", lambda places: np.copyto(places, [0, 1, 3, 0, 3, 2]))


def change_a_weight(model: onnx.ModelProto) -> None:
    def flip(weight: Array) -> None:
        weight.view(np.uint32).ravel()[9] ^= 1

    edit(model, "conv1.weight/groups/read", flip)


def change_a_bias(model: onnx.ModelProto) -> None:
    edit(model, "conv1.bias/read", lambda bias: bias.__setitem__(3, np.nextafter(bias[3], np.float32(9))))


def claim_other_channels(model: onnx.ModelProto) -> None:
    claim(model, "0 3 5 7")


def claim_too_few(model: onnx.ModelProto) -> None:
    claim(model, "0 2 5")


def claim_channels_that_are_not_there(model: onnx.ModelProto) -> None:
    claim(model, "0 2 5 8")


def claim_no_numbers(model: onnx.ModelProto) -> None:
    claim(model, "0 2 5 " + "9" * 5000)


def claim_another_tensor(model: onnx.ModelProto) -> None:
    claim(model, "out", keys.HELD_TENSOR)
    claim(model, "0 2 5 1")


def another_activation(model: onnx.ModelProto) -> None:
    node(model, "relu").op_type = "Sigmoid"


def no_activation(model: onnx.ModelProto) -> None:
    node(model, "conv2/channels").input[0] = "a/read"


def mixed_channels(model: onnx.ModelProto) -> None:
    softmax = helper.make_node("Softmax", ["a/read"], ["b/read"], name="relu", axis=1)
    node(model, "relu").CopyFrom(softmax)


def an_unread_copy(model: onnx.ModelProto) -> None:
    model.graph.node.append(helper.make_node("Relu", ["a/read"], ["more"], name="more"))


def under_the_whole_name(model: onnx.ModelProto) -> None:
    for entry in model.graph.node:
        for names in (entry.input, entry.output):
            names[:] = ["b" if name == "b/read" else name for name in names]


FAULTS = [
    (read_another_channel, "Conv conv2: its weights are not the sparse file's, in 3 of 6 output channels"),
    (leave_a_read_channel_out, "Conv conv2: its weights are not the sparse file's, in 3 of 6 output channels"),
    (change_a_weight, "Conv conv1: its weights are not the sparse file's, in 1 of 4 output channels"),
    (change_a_bias, "Conv conv1: it has another bias"),
    (claim_other_channels, "Conv conv1: it has another bias"),
    (claim_too_few, "Conv conv1: it has another bias"),
    (claim_channels_that_are_not_there, "Conv conv1 of the sparse file is missing"),
    (claim_no_numbers, "Conv conv1 of the sparse file is missing"),
    (claim_another_tensor, "Conv conv1: it reads x, in the sparse file b"),
    (another_activation, "Sigmoid relu is not in the sparse file"),
    (no_activation, "Conv conv2: it reads a, in the sparse file b"),
    (mixed_channels, "Softmax relu is not in the sparse file"),
    (an_unread_copy, "more is computed, but nothing reads it"),
    (under_the_whole_name, "Relu relu is not Relu relu of the sparse file"),
]


@pytest.mark.parametrize(("plant", "expected"), FAULTS, ids=[plant.__name__ for plant, _ in FAULTS])
def test_planted_faults_are_found(plant: Callable[[onnx.ModelProto], None], expected: str) -> None:
    before = chain([[0, 2, 5], [0, 5, 7]])
    after = without_unread(before)
    plant(after)
    found = differences(before, after)
    assert any(expected in line for line in found), found
