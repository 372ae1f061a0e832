"""Slopes of activations against difference quotients, and activations found again in the operators they are written with."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.inliner
import pytest

from masksparse_deploy.certify import activations
from masksparse_deploy.certify.fused import Fused, fused_activations, fused_in_both
from masksparse_deploy.certify.local import local_rule
from masksparse_deploy.graph.evaluate import evaluate, unsupported_operators
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.graph.reader import parse_graph
from tests.certify.networks import MORE, Builder, as_pair

Array = npt.NDArray[Any]

GRID = np.linspace(-12, 12, 400_001)
# Attributes with which an operator is tried.
ATTRIBUTES: dict[str, dict[str, Any]] = {
    "Celu": {"alpha": 0.6},
    "Elu": {"alpha": 1.4},
    "HardSigmoid": {"alpha": 0.3},
    "LeakyRelu": {"alpha": -1.5},
    "Swish": {"alpha": 1.7},
}
SMOOTH = sorted(set(activations._SLOPES) - {"Cast", "Clip", "Dropout", "PRelu"})


def single(op: str, **attributes: Any) -> Node:
    return Node(name="case", op=op, domain="", inputs=("x",), outputs=("y",), attributes=attributes, metadata={})


def quotient(values: Array) -> float:
    """The largest difference quotient between neighbours on the grid: a lower bound of the largest slope."""
    return float(np.abs(np.diff(values) / np.diff(GRID)).max())


def no_graph() -> Graph:
    build = Builder(0)
    return parse_graph(build.model(build.node("Relu", "x"), ("batch", 4, 7, 7)).SerializeToString(), name="none")


@pytest.mark.parametrize("op", SMOOTH)
def test_slopes_are_largest_slopes_and_not_much_more(op: str) -> None:
    node = single(op, **ATTRIBUTES.get(op, {}))
    seen = quotient(apply_node(node, [GRID], batch=None))
    slope = activations.slope(node, no_graph())
    # rounding of the quotients: 1e-16 / 6e-5
    assert slope is not None and seen <= slope * (1 + 1e-9)
    assert slope <= seen * 1.001


def test_gelu_by_tanh_has_that_slope_too() -> None:
    node = single("Gelu", approximate="tanh")
    assert quotient(apply_node(node, [GRID], batch=None)) <= activations.GELU


@pytest.mark.parametrize(("high", "offset"), [(6, 3), (1, 0), (2, -1), (1, 5), (4, 1)])
def test_slopes_of_gates(high: float, offset: float) -> None:
    seen = quotient(GRID * np.clip(GRID + offset, 0, high))
    slope = activations.gate_slope(high, offset)
    # the grid is 6e-5 wide and the second derivative 2
    assert seen <= slope * (1 + 1e-9) and slope <= seen + 1e-3


def fused(make: Callable[[Builder, str], str]) -> tuple[Graph, dict[str, Fused]]:
    build = Builder(0)
    build.node("Relu", "x")
    graph = parse_graph(build.model(make(build, "x"), ("batch", 4, 7, 7)).SerializeToString(), name="fused")
    return graph, fused_activations(graph)


# The largest slope of each when it is written out in operators.
WRITTEN = {
    "silu": 1.0999,
    "swish": 1.0999 / 0.4,
    "hard swish": 1.5,
    "hard swish by gate": 1.5,
    "gelu": 1.1290,
    "gelu by tanh": 1.1291,
    "mish": 1.0885,
    "softplus": 1.0,
    "softsign": 1.0,
}


@pytest.mark.parametrize("name", WRITTEN)
def test_activations_are_found_in_their_operators(name: str) -> None:
    graph, found = fused(MORE[name])
    activation = next(entry for key, entry in found.items() if len(entry.nodes) == max(len(e.nodes) for e in found.values()))
    assert activation.source == "x"
    assert activation.slope == pytest.approx(WRITTEN[name], rel=1e-6)
    assert activation.interior < activation.nodes
    values = GRID[100_000:300_000].astype(np.float32)
    images = np.resize(values, (len(values) // 196 + 1, 4, 7, 7))
    outputs = evaluate(graph, images)["y"]
    x, y = images.reshape(-1).astype(np.float64), outputs.reshape(-1)
    steps = np.abs(np.diff(x))
    assert (np.abs(np.diff(y)) <= activation.slope * steps + activation.jump * (steps > 0) + 1e-12).all()
    at_zero = evaluate(graph, np.zeros((1, 4, 7, 7), np.float32))["y"]
    assert np.abs(at_zero).max() == pytest.approx(activation.origin, abs=1e-12)


def gate_of_another(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Sigmoid", build.node("Relu", x)))


def two_in_gelu(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Add", build.node("Erf", x), build.number(2)))


def other_cubic(build: Builder, x: str) -> str:
    cube = build.node("Mul", build.number(0.5), build.node("Pow", x, build.number(3)))
    inside = build.node("Mul", build.number(0.79788), build.node("Add", x, cube))
    return build.node("Mul", x, build.node("Add", build.node("Tanh", inside), build.number(1)))


def gate_below_zero(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Clip", x, build.number(-1), build.number(1)))


def other_threshold(build: Builder, x: str) -> str:
    return build.node("Where", build.node("Greater", x, build.number(-2)), x, build.node("Softplus", x))


def product_by_channel(build: Builder, x: str) -> str:
    return build.node("Mul", x, build.node("Sigmoid", build.node("Mul", x, build.random(4, 1, 1))))


@pytest.mark.parametrize(
    "make", [gate_of_another, two_in_gelu, other_cubic, gate_below_zero, other_threshold, product_by_channel]
)
def test_what_only_looks_like_one_is_not_taken_for_it(make: Callable[[Builder, str], str]) -> None:
    assert fused(make)[1] == {}


def test_a_tensor_that_is_read_elsewhere_keeps_its_own_bound() -> None:
    def make(build: Builder, x: str) -> str:
        gate = build.node("Sigmoid", x)
        return build.node("Add", build.node("Mul", x, gate), gate)

    _, found = fused(make)
    (activation,) = found.values()
    assert activation.interior == frozenset()


def test_an_activation_that_differs_between_the_files_is_not_bounded_as_one() -> None:
    models = []
    for scale in (0.4, 0.5):
        build = Builder(0)
        product = build.node("Mul", "x", build.node("Sigmoid", "x"))
        models.append(build.model(build.node("Mul", product, build.number(scale)), ("batch", 4, 7, 7)))
    found = fused_in_both(as_pair((models[0], models[1])))
    assert [name.rstrip("0123456789.out") for name in found] == ["Mul"]  # the product, which is the same in both


def product_bound_holds(seed: int, rule: Any = local_rule) -> bool:
    """Whether the bounds of a product hold for random tensors, of which one factor is broadcast and one may be equal."""
    generator = np.random.default_rng(seed)
    shapes = [(3, 4, 5, 5), (3, 4, 1, 1)][:: 1 - 2 * (seed % 2)]
    dense = [generator.standard_normal(shape) for shape in shapes]
    moves = [generator.standard_normal(shape) * (seed % 3 != which) for which, shape in enumerate(shapes)]
    sparse = [array + move for array, move in zip(dense, moves, strict=True)]
    node = Node(name="m", op="Mul", domain="", inputs=("a", "b"), outputs=("y",), attributes={}, metadata={})
    found = rule(node, no_graph(), dense, sparse, [np.abs(move) for move in moves], (3, 4, 5, 5))
    distances = [np.linalg.norm(move.reshape(3, -1), axis=1) for move in moves]
    difference = dense[0] * dense[1] - sparse[0] * sparse[1]
    # 1e-12 for the rounding of sums of 100 terms
    within = np.linalg.norm(difference.reshape(3, -1), axis=1) <= found.l2.combine(distances) + 1e-12
    return bool(within.all() and (np.abs(difference) <= found.elements + 1e-12).all())


def test_products_of_two_tensors_are_bounded() -> None:
    assert all(product_bound_holds(seed) for seed in range(60))


@pytest.mark.parametrize("forgotten", [0, 1])
def test_a_forgotten_half_of_the_product_rule_is_caught(forgotten: int) -> None:
    def faulty(*arguments: Any) -> Any:
        found = local_rule(*arguments)
        factors = tuple(0.0 if which == forgotten else factor for which, factor in enumerate(found.l2.factors))
        return type(found)(l2=type(found.l2)(factors=factors), elements=found.elements)

    assert not all(product_bound_holds(seed, faulty) for seed in range(60))


@pytest.mark.parametrize("op", ["LayerNormalization", "InstanceNormalization"])
def test_normalization_is_bounded_by_both_deviations(op: str) -> None:
    """Near and far, also where one tensor is nearly constant: the bound holds, and for small steps it is nearly reached."""
    build = Builder(0)
    scale = build.random(6 if op == "LayerNormalization" else 4)
    shift = build.random(6 if op == "LayerNormalization" else 4)
    model = build.model(build.node(op, "x", scale, shift, epsilon=1e-2), ("batch", 4, 7, 7))
    graph = parse_graph(model.SerializeToString(), name=op)
    node = graph.nodes[0]
    constants = [graph.constants[name].astype(np.float64) for name in node.inputs[1:]]
    generator = np.random.default_rng(0)
    for size, step in [(1, 1), (1, 1e-4), (1e-3, 1), (1e-3, 1e-3), (10, 1e-2)]:
        x = size * generator.standard_normal((2, 4, 5, 6))
        y = x + step * generator.standard_normal(x.shape)
        found = local_rule(node, graph, [x], [y], [np.abs(x - y)], x.shape)
        moved = apply_node(node, [x, *constants], batch=None) - apply_node(node, [y, *constants], batch=None)
        distance = np.linalg.norm((x - y).reshape(2, -1), axis=1)
        assert (np.linalg.norm(moved.reshape(2, -1), axis=1) <= found.l2.combine([distance]) * (1 + 1e-9)).all()
        assert (np.abs(moved) <= found.elements * (1 + 1e-9) + 1e-12).all()


@pytest.mark.parametrize(
    ("op", "attributes", "slope"),
    [
        ("Gelu", {}, 1.1290),
        ("Gelu", {"approximate": "tanh"}, 1.1291),
        ("HardSwish", {}, 1.5),
        ("Mish", {}, 1.0885),
        ("Softsign", {}, 1.0),
        ("Clip", {}, None),
    ],
)
def test_the_bodies_of_onnx_functions_are_bounded(op: str, attributes: dict[str, Any], slope: float | None) -> None:
    build = Builder(0)
    model = build.model(build.node(op, "x", **attributes), ("batch", 4, 7, 7))
    inlined = onnx.inliner.inline_selected_functions(model, [("", op)], inline_schema_functions=True)
    pair = as_pair((inlined, inlined))
    assert op not in [node.op for node in pair.dense.nodes]
    assert unsupported_operators(pair.dense) == ()
    assert [activation.slope for activation in fused_in_both(pair).values()] == (
        [] if slope is None else [pytest.approx(slope)]
    )
    images = np.random.default_rng(0).standard_normal((2, 4, 7, 7), dtype=np.float32)
    whole = evaluate(parse_graph(model.SerializeToString(), name="whole"), images)["y"]
    # numbers such as 0.044715 are float32 in the body of the function
    np.testing.assert_allclose(evaluate(pair.dense, images)["y"], whole, rtol=1e-6, atol=1e-7)
