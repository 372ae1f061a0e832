"""The network recursions: bounds hold on random networks, and wrong constants are caught."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from masksparse_deploy.certify import activations, lipschitz
from masksparse_deploy.certify.claims import certified_by_margin, certified_by_pairs
from masksparse_deploy.certify.data_free import data_free_bound
from masksparse_deploy.certify.elementwise import enlarge
from masksparse_deploy.certify.operator_norm import NormBound, NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.propagation import LastLayer, Propagation
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.core.artifacts.certificate import HYBRID, MEASURED_NORMS, MEASURED_RESIDUALS
from masksparse_deploy.core.progress import silent
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.model import Node
from tests.certify.networks import CLASSES, KINDS, MORE_KINDS, Builder, as_pair, random_images, random_pair
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[Any]

networks = st.tuples(
    st.lists(st.sampled_from((*KINDS, *MORE_KINDS)), max_size=4), st.integers(0, 2**16), st.sampled_from(["mask", "everything"])
)


def run(pair: Pair, images: Array) -> Propagation:
    return propagate(pair, images, NormCache(grid=8), progress=silent)


def distances(result: Propagation) -> Array:
    norms: Array = np.linalg.norm(result.dense - result.sparse, axis=1)
    return norms


@settings(max_examples=120, deadline=None)
@given(network=networks)
def test_bounds_hold_on_random_networks(network: tuple[list[str], int, str]) -> None:
    kinds, seed, change = network
    result = run(as_pair(random_pair(kinds, seed, change=change)), random_images(3, seed))
    assert result.missing == ()
    # propagate compares the tensors of every node too; 1e-12 for the rounding of the two evaluations
    rounding = 1e-12 * (1 + np.abs(result.dense).max())
    hybrid, residuals = result.bounds[HYBRID], result.bounds[MEASURED_RESIDUALS]
    assert (distances(result) <= hybrid + rounding).all()
    assert (hybrid <= residuals).all()
    if change == "mask" or "clip" not in kinds:  # limits that differ have no rule from norms alone
        # the norms of what was changed are rounded outward, ||D x|| is not: nothing is left to allow for but the order of sums
        assert (residuals <= result.bounds[MEASURED_NORMS] * (1 + 1e-12)).all()


@settings(max_examples=60, deadline=None)
@given(network=networks, scale=st.floats(0, 1))
def test_data_free_bounds_hold_for_every_input_in_the_ball(network: tuple[list[str], int, str], scale: float) -> None:
    kinds, seed, change = network
    kinds = [kind for kind in kinds if not (change == "everything" and kind == "clip")]
    pair = as_pair(random_pair(kinds, seed, change=change))
    images = random_images(3, seed)
    images *= scale * 5 / np.linalg.norm(images.reshape(3, -1), axis=1).max()
    norms = NormCache(grid=8)
    result = propagate(pair, images, norms, progress=silent)
    bound = data_free_bound(pair, radius=5.0, shapes=result.shapes, norms=norms)
    assert distances(result).max() <= bound
    # what was measured on a sample is never worse than what holds for all of them
    assert max(bounds.max() for bounds in result.bounds.values()) <= bound * (1 + 1e-6)


@pytest.mark.parametrize("kind", (*KINDS, *MORE_KINDS))
def test_every_rule_is_reached(kind: str) -> None:
    result = run(as_pair(random_pair([kind], 3)), random_images(2))
    for claim in (MEASURED_NORMS, MEASURED_RESIDUALS, HYBRID):
        assert np.isfinite(result.bounds[claim]).all()
        assert (result.bounds[claim] >= distances(result)).all()


def test_equal_networks_are_at_distance_zero() -> None:
    dense, _ = residual_pair()
    images = np.random.default_rng(0).standard_normal((2, 3, 8, 8), dtype=np.float32)
    result = run(as_pair((dense, dense)), images)
    assert {tuple(bounds.tolist()) for bounds in result.bounds.values()} == {(0.0, 0.0)}
    assert result.gains == {}


def test_chunks_give_the_same_as_single_samples() -> None:
    pair = as_pair(residual_pair())
    images = np.random.default_rng(0).standard_normal((60, 3, 8, 8), dtype=np.float32)
    together = run(pair, images)
    alone = run(pair, images[57:58])
    assert together.last_layer is not None and alone.last_layer is not None
    for claim in together.bounds:
        np.testing.assert_allclose(together.bounds[claim][57], alone.bounds[claim][0], rtol=1e-12)
    np.testing.assert_allclose(together.last_layer.outputs[57], alone.last_layer.outputs[0], rtol=1e-9)


def test_a_corrupt_weight_in_the_sparse_file_is_within_the_bound() -> None:
    dense, sparse = residual_pair()
    (tensor,) = (entry for entry in sparse.graph.initializer if entry.name == "layer2.conv1.weight")
    kernel = numpy_helper.to_array(tensor).copy()
    kernel[1, 2, 1, 1] = 50.0
    tensor.CopyFrom(numpy_helper.from_array(kernel, tensor.name))
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    before, after = run(as_pair(residual_pair()), images), run(as_pair((dense, sparse)), images)
    assert (distances(after) <= after.bounds[HYBRID]).all()
    assert after.bounds[HYBRID].min() > before.bounds[HYBRID].max()


def test_a_wrong_lipschitz_constant_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activations, "_SLOPES", {**activations._SLOPES, "LeakyRelu": lambda *_: 0.1})
    with pytest.raises(AssertionError, match="of LeakyRelu 'LeakyRelu1' is below the measured"):
        run(as_pair(random_pair(["LeakyRelu"], 0)), random_images(2))


def test_a_norm_that_is_too_small_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksparse_deploy.certify.lipschitz.weight_norm", lambda *_: NormBound(value=0.0, method="planted"))
    with pytest.raises(AssertionError, match="of Conv 'Conv1' is below the measured"):
        run(as_pair(random_pair(["conv"], 0)), random_images(2))


def unruled(op: str) -> Pair:
    build = Builder(0)
    x = build.conv("x", 4, 4)
    if op == "MatMul":
        x = build.node("MatMul", x, x)
    else:
        indices = [build.constant(np.array(values, dtype=np.int64)) for values in ([0], [2**31], [0], [1])]
        x = build.node("Slice", x, *indices)
    x = build.node("Relu", x)
    models = build.model(x, ("batch", 4, 7, 7))
    return as_pair((models, models))


@pytest.mark.parametrize(("op", "name"), [("MatMul", "MatMul with a computed parameter"), ("Slice", "Slice across samples")])
def test_operators_without_a_rule_are_named_and_prove_nothing(op: str, name: str) -> None:
    pair = unruled(op)
    result = run(pair, random_images(2))
    assert result.missing == (name,)
    assert result.bounds == {}
    with pytest.raises(NoRuleError, match=name):
        data_free_bound(pair, radius=1.0, shapes=result.shapes, norms=NormCache(grid=8))


def across_samples(kind: str) -> Pair:
    """A network that is not a function of one sample, whose outputs have a row for each sample all the same."""
    build = Builder(0)
    x = build.conv("x", 4, 4)
    if kind == "Slice":  # the batch in reverse, its axis counted from the back
        indices = [build.constant(np.array(values, dtype=np.int64)) for values in ([-1], [-(2**31)], [-4], [-1])]
        x = build.node("Slice", x, *indices)
    elif kind == "Pad":  # every sample in the place of the next
        x = build.node("Pad", x, build.constant(np.array([1, 0, 0, 0, -1, 0, 0, 0], dtype=np.int64)))
    else:  # (batch, 4, 1, 7) + (batch, 7): one row for each sample, in the image's height
        axes = [build.constant(np.array(values, dtype=np.int64)) for values in ([2], [1, 2])]
        x = build.node("Add", build.node("ReduceMean", x, axes[0]), build.node("ReduceMean", x, axes[1], keepdims=0))
    models = build.model(x, ("batch", 4, "rows", 7))
    return as_pair((models, models))


@pytest.mark.parametrize("kind", ["Slice", "Pad", "Add"])
def test_operators_that_mix_samples_prove_nothing(kind: str) -> None:
    result = run(across_samples(kind), random_images(3))
    assert result.missing == (f"{kind} across samples",)
    assert result.bounds == {}


def test_a_negative_padding_value_does_not_lower_the_elementwise_bound() -> None:
    _, sparse = random_pair([], 0)
    node = Node(
        name="pad",
        op="Pad",
        domain="",
        inputs=("x",),
        outputs=("y",),
        attributes={"pads": (0, 0, 1, 1, 0, 0, 1, 1), "value": -50.0},
        metadata={},
    )
    graph = as_pair((sparse, sparse)).sparse
    distances = enlarge(node, graph, {"x": np.ones((1, 4, 7, 7))}, (1, 4, 9, 9), None)
    assert distances.min() == 0
    assert distances.sum() == 4 * 7 * 7


def test_limits_that_differ_have_no_data_free_rule() -> None:
    dense, sparse = random_pair(["clip"], 0)
    limits = [tensor for tensor in sparse.graph.initializer if len(tensor.dims) == 0]
    limits[1].CopyFrom(numpy_helper.from_array(np.array(5, dtype=np.float32), limits[1].name))
    pair = as_pair((dense, sparse))
    result = run(pair, random_images(2))  # the per-sample recursion measures the difference and covers it
    with pytest.raises(NoRuleError, match="Clip whose parameters differ"):
        data_free_bound(pair, radius=1.0, shapes=result.shapes, norms=NormCache(grid=8))


def test_overlapping_max_pools_need_their_factor() -> None:
    """One element that all four windows around it share: the distance doubles, which the factor 2 allows exactly."""
    x, y = np.zeros((1, 4, 7, 7), dtype=np.float32), np.zeros((1, 4, 7, 7), dtype=np.float32)
    y[0, 0, 1, 1] = 1.0
    build = Builder(0)
    pooled = build.node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    pair = as_pair((build.model(pooled, ("batch", 4, 4, 4)),) * 2)
    (node, _) = pair.dense.nodes
    rule = lipschitz.lipschitz_rule(
        node, pair.dense, frozenset({"x", pooled}), {"x": (4, 7, 7), pooled: (4, 4, 4)}, NormCache(grid=8)
    )
    outputs = [evaluate(pair.dense, image)["y"] for image in (x, y)]
    assert np.linalg.norm(outputs[1] - outputs[0]) == 2.0
    assert rule.factors == (2.0,)


def test_margins_and_pairs() -> None:
    logits = np.array([[3.0, 1.0, 0.0], [3.0, 2.9, 0.0]])
    assert certified_by_margin(logits, np.array([1.4, 1.4])).tolist() == [True, False]  # 2 > 1.4 sqrt(2) = 1.98
    assert certified_by_margin(logits, np.array([1.42, 0.0])).tolist() == [False, True]
    last = LastLayer(rows=np.eye(3), input_bounds={HYBRID: np.array([1.4, 1.4])}, outputs=logits)
    assert certified_by_pairs(logits, last, HYBRID).tolist() == [True, False]
    # rows that are equal cannot move against each other
    still = LastLayer(rows=np.ones((3, 3)), input_bounds={HYBRID: np.array([1e9, 1e9])}, outputs=logits)
    assert certified_by_pairs(logits, still, HYBRID).tolist() == [True, True]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**16), size=st.floats(0, 3))
def test_certified_samples_keep_their_class_whatever_the_distance(seed: int, size: float) -> None:
    generator = np.random.default_rng(seed)
    rows, x = generator.standard_normal((CLASSES, 5)), generator.standard_normal((20, 5))
    step = generator.standard_normal((20, 5))
    step *= size / np.linalg.norm(step, axis=1, keepdims=True)
    logits, moved = x @ rows.T, (x + step) @ rows.T
    last = LastLayer(rows=rows, input_bounds={HYBRID: np.full(20, size * (1 + 1e-12))}, outputs=logits)
    certified = certified_by_pairs(logits, last, HYBRID)
    assert (logits.argmax(1) == moved.argmax(1))[certified].all()
    bounds = np.linalg.norm(logits - moved, axis=1) * (1 + 1e-12)
    by_margin = certified_by_margin(logits, bounds)
    assert (logits.argmax(1) == moved.argmax(1))[by_margin].all()
