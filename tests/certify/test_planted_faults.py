"""Faults planted in the network bound are found by its own comparison with what is measured, at the operator they are at."""

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from masksparse_deploy.certify import activations, data_free, elementwise, lipschitz, recursion
from masksparse_deploy.certify.data_free import data_free_bound
from masksparse_deploy.certify.fused import Fused
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.rule import Rule
from masksparse_deploy.core.progress import silent
from tests.certify.networks import Builder, as_pair, layer, random_images, random_pair

Patch = pytest.MonkeyPatch


def run(pair: Pair) -> None:
    propagate(pair, random_images(2), NormCache(grid=8), progress=silent)


@pytest.mark.parametrize(
    "op", ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Gelu", "HardSwish", "Mish", "Softplus", "Softsign"]
)
def test_a_slope_that_is_too_small(op: str, monkeypatch: Patch) -> None:
    run(as_pair(random_pair([op], 0)))
    monkeypatch.setattr(activations, "_SLOPES", {**activations._SLOPES, op: lambda *_: 0.01})
    with pytest.raises(AssertionError, match=f"of {op} '{op}1' is below the measured"):
        run(as_pair(random_pair([op], 0)))


@pytest.mark.parametrize("kind", ["silu", "gelu", "hard swish", "mish"])
def test_a_slope_that_is_too_small_for_an_activation_of_several_operators(kind: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(Fused, "rule", lambda self, count: Rule(factors=(0.01 * self.slope,)))
    with pytest.raises(AssertionError, match="is below the measured"):
        run(as_pair(random_pair([kind], 0)))


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool", "Resize", "ReduceMean", "Transpose", "Softmax"])
def test_a_factor_that_is_too_small(op: str, monkeypatch: Patch) -> None:
    kinds = {"MaxPool": "max pool", "AveragePool": "average pool", "Resize": "linear", "Transpose": "shuffled"}
    monkeypatch.setattr(lipschitz, "_FACTORS", {**lipschitz._FACTORS, op: lambda *_: 0.01})
    with pytest.raises(AssertionError, match=f"of {op} '{op}[0-9]*' is below the measured"):
        run(as_pair(random_pair([kinds.get(op, "softmax" if op == "Softmax" else "Identity")], 0)))


def branches() -> Pair:
    """x + conv(x), where the convolution is all zeros: the whole difference comes by the branch without operators."""
    build = Builder(0)
    x = build.conv("x", 4, 4)
    inside = build.conv(x, 4, 4)
    zero = next(reversed([name for name in build.constants if name.endswith("weight")]))
    build.constants[zero] = np.zeros_like(build.constants[zero])
    dense = build.model(build.node("Add", inside, x), ("batch", 4, 7, 7))
    return as_pair((dense, changed(dense, "conv0.weight", lambda array: array * (np.abs(array) > 0.2))))


def changed(model: onnx.ModelProto, name: str, change: Callable[[Any], Any]) -> onnx.ModelProto:
    twin = onnx.ModelProto()
    twin.CopyFrom(model)
    (tensor,) = (entry for entry in twin.graph.initializer if entry.name == name)
    tensor.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(tensor)).astype(np.float32), name))
    return twin


def test_a_forgotten_branch(monkeypatch: Patch) -> None:
    pair, rule = branches(), recursion.lipschitz_rule
    run(pair)
    monkeypatch.setattr(recursion, "lipschitz_rule", lambda node, *rest: first_only(rule(node, *rest)))
    with pytest.raises(AssertionError, match=r"of Add 'Add[0-9]' is below the measured"):
        run(pair)


def first_only(rule: Rule) -> Rule:
    return Rule(factors=(rule.factors[0], *(0.0 for _ in rule.factors[1:])), is_concatenation=rule.is_concatenation)


def test_a_forgotten_part_of_a_concatenation(monkeypatch: Patch) -> None:
    build, rule = Builder(0), recursion.lipschitz_rule
    first, second = build.conv("x", 4, 4), build.conv("x", 4, 4)
    weights = [name for name in build.constants if name.endswith("weight")]
    dense = build.model(build.node("Concat", first, second, axis=1), ("batch", 8, 7, 7))
    pair = as_pair((dense, changed(dense, weights[1], lambda array: 0.5 * array)))
    run(pair)
    monkeypatch.setattr(recursion, "lipschitz_rule", lambda node, *rest: first_only(rule(node, *rest)))
    with pytest.raises(AssertionError, match=r"of Concat 'Concat[0-9]' is below the measured"):
        run(pair)


def only_a_bias() -> Pair:
    build = Builder(0)
    dense = build.model(layer(build, "conv", "x"), ("batch", 4, 7, 7))
    (bias,) = (tensor.name for tensor in dense.graph.initializer if len(tensor.dims) == 1)
    return as_pair((dense, changed(dense, bias, lambda array: array + 0.1)))


def test_a_forgotten_difference_of_biases(monkeypatch: Patch) -> None:
    pair = only_a_bias()
    run(pair)
    norms = NormCache(grid=8)
    result = propagate(pair, random_images(2), norms, progress=silent)
    distance = float(np.linalg.norm((result.dense - result.sparse).reshape(2, -1), axis=1).max())
    arguments: dict[str, Any] = {"radius": 20.0, "shapes": result.shapes, "norms": norms}
    assert data_free_bound(pair, **arguments) >= distance
    for module in (recursion, data_free):
        monkeypatch.setattr(module, "at_zero", lambda node, graph, shapes, masks: np.zeros((1, *shapes[node.outputs[0]])))
    with pytest.raises(AssertionError, match="of Conv 'Conv0' is below the measured"):
        run(pair)
    assert data_free_bound(pair, **arguments) < distance


def squares() -> Pair:
    """x^2 in the dense network and 9 x^2 in the sparse one, for one number x."""
    nodes = [helper.make_node("Conv", ["x", f"w{name}"], [name], name=name) for name in "ab"]
    nodes.append(helper.make_node("Mul", ["a", "b"], ["y"], name="y"))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ("batch", 1, 1, 1)) for name in "xy"]
    models = []
    for weight in (1.0, 3.0):
        weights = [numpy_helper.from_array(np.full((1, 1, 1, 1), weight, dtype=np.float32), f"w{name}") for name in "ab"]
        graph = helper.make_graph(nodes, "squares", ends[:1], ends[1:], weights)
        models.append(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    return as_pair((models[0], models[1]))


def test_a_product_bounded_with_the_dense_network_alone(monkeypatch: Patch) -> None:
    shapes, norms = dict.fromkeys("xaby", (1, 1, 1)), NormCache(grid=8)
    # |x^2 - 9 x^2| = 32 for |x| = 2
    assert data_free_bound(squares(), radius=2.0, shapes=shapes, norms=norms) >= 32
    monkeypatch.setattr(data_free._Ball, "sparse_radius", property(lambda ball: ball.radius))
    assert data_free_bound(squares(), radius=2.0, shapes=shapes, norms=norms) < 32


def test_an_elementwise_bound_that_is_too_small(monkeypatch: Patch) -> None:
    pair, enlarge = as_pair(random_pair(["conv"], 0)), elementwise.enlarge
    monkeypatch.setattr(recursion, "enlarge", lambda *arguments: 0.01 * enlarge(*arguments))
    with pytest.raises(AssertionError, match="is below the measured"):
        run(pair)
