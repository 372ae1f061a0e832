"""Which constant a layer multiplies by, also behind casts, transpositions and quantizers."""

from typing import Any

import hypothesis
import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.layout import LayoutStep, as_stored, stored_axis
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.bake.lint_models import model_of, one_layer, weights


def layers_of(model: onnx.ModelProto) -> tuple[WeightedLayer, ...]:
    return weighted_layers(parse_graph(model.SerializeToString(), name="test.onnx"))


def behind(nodes: list[onnx.NodeProto], constants: dict[str, Any], *, rank: int = 4) -> onnx.ModelProto:
    """A layer whose second input "last" is made of the constant "w" by `nodes`."""
    op = "Conv" if rank == 4 else "MatMul"
    x = ["n", None, 4, 4] if rank == 4 else ["n", None]
    return model_of([*nodes, helper.make_node(op, ["x", "last"], ["y"], name="layer")], constants, x=x)


def reference(model: onnx.ModelProto) -> Any:
    """What ONNX's own evaluator makes of "last"."""
    part = onnx.ModelProto()
    part.CopyFrom(model)
    part.graph.node.pop()
    del part.graph.output[:]
    part.graph.output.append(helper.make_tensor_value_info("last", TensorProto.FLOAT, None))
    return ReferenceEvaluator(part).run(None, {"x": np.zeros((1, 1, 1, 1), np.float32)})[0]


SCALES = np.linspace(0.01, 0.08, 8, dtype=np.float32)
POINTS = np.arange(-4, 4, dtype=np.int8)
LEVELS = np.random.default_rng(1).integers(-8, 8, (8, 8, 1, 1)).astype(np.int8)


@pytest.mark.parametrize(
    ("nodes", "constants", "rank", "route"),
    [
        ([helper.make_node("Identity", ["w"], ["last"])], {"w": weights(8, 8, 3, 3)}, 4, ("Identity",)),
        (
            [helper.make_node("Cast", ["w"], ["last"], to=TensorProto.FLOAT)],
            {"w": weights(8, 8, 3, 3).astype(np.float16)},
            4,
            ("Cast",),
        ),
        (
            [helper.make_node("Reshape", ["w", "s"], ["a"]), helper.make_node("Transpose", ["a"], ["last"], perm=[1, 0])],
            {"w": weights(96), "s": np.array([12, -1])},
            2,
            ("Reshape", "Transpose"),
        ),
        (
            [helper.make_node("Unsqueeze", ["w", "a"], ["last"])],
            {"w": weights(8, 8), "a": np.array([2, 3])},
            4,
            ("Unsqueeze",),
        ),
        ([helper.make_node("Squeeze", ["w", "a"], ["last"])], {"w": weights(1, 8, 4), "a": np.array([0])}, 2, ("Squeeze",)),
        (
            [helper.make_node("DequantizeLinear", ["w", "s", "z"], ["last"], axis=0)],
            {"w": LEVELS, "s": SCALES, "z": POINTS},
            4,
            ("DequantizeLinear",),
        ),
        (
            [helper.make_node("DequantizeLinear", ["w", "s"], ["last"])],
            {"w": LEVELS, "s": np.float32(0.5)},
            4,
            ("DequantizeLinear",),
        ),
        (
            [helper.make_node("DequantizeLinear", ["w", "s"], ["last"], axis=1, block_size=4)],
            {"w": LEVELS[:, :, 0, 0], "s": weights(8, 2)},
            2,
            ("DequantizeLinear",),
        ),
        (
            [
                helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"], axis=-4),
                helper.make_node("DequantizeLinear", ["q", "s", "z"], ["last"], axis=-4),
            ],
            {"w": weights(8, 8, 1, 1), "s": SCALES, "z": POINTS},
            4,
            ("QuantizeLinear", "DequantizeLinear"),
        ),
    ],
)
def test_the_weight_is_what_the_operator_multiplies_by(
    nodes: list[onnx.NodeProto], constants: dict[str, Any], rank: int, route: tuple[str, ...]
) -> None:
    model = behind(nodes, constants, rank=rank)
    (layer,) = layers_of(model)
    assert (layer.weight_name, layer.stored_name, layer.route) == ("last", "w", route)
    assert layer.quantized == ("int8" if "DequantizeLinear" in route else None)
    assert layer.weight.dtype == np.float32
    np.testing.assert_array_equal(layer.weight, reference(model))
    np.testing.assert_array_equal(layer.stored, constants["w"])
    assert layer.weight_as_stored.shape == constants["w"].shape


def test_a_direct_weight() -> None:
    (layer,) = layers_of(one_layer("Conv", weights(8, 8, 3, 3), x=["n", 8, 4, 4]))
    assert (layer.stored_name, layer.weight_name, layer.route, layer.quantized) == ("w", "w", (), None)
    assert layer.stored is layer.weight


def test_transposed_convolutions_sum_over_their_first_axis() -> None:
    (layer,) = layers_of(one_layer("ConvTranspose", weights(4, 2, 3, 3), x=["n", 4, 4, 4], group=2))
    assert (layer.group_axis, layer.groups, layer.kernel_positions) == (0, 2, 9)


def test_masks_of_a_transposed_linear_layer_find_their_axis() -> None:
    stored = weights(12, 8)
    (layer,) = layers_of(behind([helper.make_node("Transpose", ["w"], ["last"])], {"w": stored}, rank=2))
    assert (layer.group_axis, layer.stored_group_axis) == (0, 1)
    np.testing.assert_array_equal(layer.weight_as_stored, stored)


def test_consumers_are_counted_behind_the_route() -> None:
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"]),
        helper.make_node("Identity", ["w"], ["i"]),
        helper.make_node("MatMul", ["x", "t"], ["a"], name="first"),
        helper.make_node("MatMul", ["a", "i"], ["y"], name="second"),
    ]
    first, second = layers_of(model_of(nodes, {"w": weights(8, 8)}, x=["n", 8]))
    assert (first.consumer_count, second.consumer_count) == (2, 2)


@pytest.mark.parametrize(
    "nodes",
    [
        [helper.make_node("Mul", ["w", "s"], ["last"])],
        [helper.make_node("DequantizeLinear", ["q", "x0"], ["last"])],
    ],
)
def test_what_is_computed_is_no_constant(nodes: list[onnx.NodeProto]) -> None:
    made = helper.make_node("ReduceMax", ["x"], ["x0"], keepdims=0)
    constants = {"w": weights(8, 8, 1, 1), "s": np.float32(2), "q": LEVELS}
    assert layers_of(behind([made, *nodes], constants)) == ()


@pytest.mark.parametrize(
    ("node", "parameter"),
    [
        (helper.make_node("Transpose", ["w"], ["last"], perm=[0, 1, 2, 9]), None),
        (helper.make_node("Transpose", ["w"], ["last"], perm=[0, 0, 1, 2]), None),
        (helper.make_node("Reshape", ["w", "p"], ["last"]), np.array([8, 8, 1, 2])),
        (helper.make_node("Reshape", ["w", "p"], ["last"]), np.array([-1, -1, 1, 1])),
        (helper.make_node("Squeeze", ["w", "p"], ["last"]), np.array([0])),
        (helper.make_node("Unsqueeze", ["w", "p"], ["last"]), np.array([40])),
        (helper.make_node("DequantizeLinear", ["q", "p"], ["last"], axis=7), SCALES),
        (helper.make_node("DequantizeLinear", ["q", "p"], ["last"], axis=0), SCALES[:3]),
        (helper.make_node("DequantizeLinear", ["q", "p"], ["last"], axis=0, block_size=-2), SCALES),
    ],
)
def test_parameters_that_do_not_fit_are_damage(node: onnx.NodeProto, parameter: Any) -> None:
    constants = {"w": weights(8, 8, 1, 1), "q": LEVELS} | ({} if parameter is None else {"p": parameter})
    with pytest.raises(ArtifactError, match=r"damaged or not (a )?valid ONNX"):
        layers_of(behind([node], constants))


@hypothesis.given(
    st.lists(st.sampled_from([1, 2, 3, 4]), min_size=2, max_size=4).flatmap(
        lambda shape: st.tuples(st.just(tuple(shape)), st.permutations(range(len(shape))))
    )
)
def test_layouts_are_undone(case: tuple[tuple[int, ...], list[int]]) -> None:
    shape, order = case
    stored = np.arange(np.prod(shape)).reshape(shape)
    turned = stored.transpose(order)
    widened = turned[:, None]
    steps = [
        LayoutStep(before=shape, after=turned.shape, order=tuple(order)),
        LayoutStep(before=turned.shape, after=widened.shape),
    ]
    np.testing.assert_array_equal(as_stored(widened, steps), stored)
    for axis in range(widened.ndim):
        if widened.shape[axis] > 1:
            assert stored_axis(axis, steps) == order[axis - (axis > 1)]


def test_a_joined_axis_has_no_place_in_the_stored_weight() -> None:
    assert stored_axis(1, [LayoutStep(before=(8, 4, 2), after=(8, 8))]) is None
