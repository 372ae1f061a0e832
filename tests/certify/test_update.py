"""Budgets of updates: kept by any update within them, tight where they can be, and false in other norms, as planted here."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.certify import data_free, update
from masksparse_deploy.certify.data_free import DataFree
from masksparse_deploy.certify.layers import layer_bound
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.update import Budgets, LayerUpdate, find_budgets, frobenius_factor, layer_pairs, other_changes
from masksparse_deploy.core.progress import silent
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.twins import masked_layers
from tests.certify.networks import Builder, as_pair, layer, random_images, random_pair

Array = npt.NDArray[Any]
Models = tuple[onnx.ModelProto, onnx.ModelProto]

GROWTH = 0.1
RADIUS = 20.0
# A norm that is computed anew is at most 2^-13 above what it stands for on the grid of the padded input (docs/bounds.md), and a
# network here multiplies fewer than 10 of them.
AGAIN = (1 + 2**-13) ** 10


def arrays(model: onnx.ModelProto) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def with_arrays(model: onnx.ModelProto, new: Mapping[str, Array]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in new:
            tensor.CopyFrom(numpy_helper.from_array(new[tensor.name].astype(np.float32), tensor.name))
    return copy


def updated(models: Models, moves: Mapping[str, Array]) -> Models:
    """The models with `moves` added to the dense one's constants, under the same masks."""
    dense, sparse = arrays(models[0]), arrays(models[1])
    new = {name: dense[name].astype(np.float64) + move for name, move in moves.items()}
    masked = {name: np.where(sparse[name] != 0, array, 0) if array.ndim > 1 else array for name, array in new.items()}
    return with_arrays(models[0], new), with_arrays(models[1], masked)


def shapes_of(pair: Pair) -> dict[str, tuple[int, ...]]:
    return propagate(pair, random_images(1), NormCache(grid=8), progress=silent).shapes


def difference_norms(pair: Pair) -> dict[str, float]:
    shapes, norms = shapes_of(pair), NormCache(grid=8)
    return {
        dense.node.name: layer_bound(dense, sparse, "", shapes, norms).difference_norm
        for dense, sparse in masked_layers(pair.dense, pair.sparse)
    }


def budgets_of(pair: Pair, growth: float = GROWTH) -> Budgets:
    return find_budgets(
        pair,
        difference_norms=difference_norms(pair),
        growth=growth,
        radius=RADIUS,
        shapes=shapes_of(pair),
        norms=NormCache(grid=8),
    )


def bound_of(pair: Pair) -> float:
    return DataFree(pair, shapes=shapes_of(pair), norms=NormCache(grid=8)).bound(RADIUS)


def weights_of(pair: Pair) -> dict[str, tuple[str, str]]:
    """Output of each layer -> the names of its weight and of its bias."""
    return {name: (entry.node.inputs[1], entry.node.inputs[2]) for name, entry in layer_pairs(pair, shapes_of(pair)).items()}


def measured(pair: Pair) -> float:
    images = random_images(8, seed=3)
    images *= (RADIUS / np.linalg.norm(images.reshape(8, -1), axis=1))[:, None, None, None].astype(np.float32)
    dense, sparse = (evaluate(graph, images)[graph.outputs[0]] for graph in (pair.dense, pair.sparse))
    return float(np.linalg.norm((dense - sparse).reshape(8, -1), axis=1).max())


def of_size(array: Array, size: float) -> Array:
    norm = float(np.linalg.norm(array))
    return array * (size / norm) if norm else array


NETWORKS = [["Relu", "conv"], ["strided conv", "Relu"], ["grouped conv"], ["residual"], ["dilated conv", "silu"], ["concat"]]


@pytest.mark.parametrize("kinds", NETWORKS, ids=" ".join)
def test_no_update_within_the_budget_breaks_a_claim(kinds: list[str]) -> None:
    models = random_pair(kinds, 0)
    old = as_pair(models)
    budgets, names, generator = budgets_of(old), weights_of(old), np.random.default_rng(1)
    assert budgets.limit is not None and budgets.bound is not None
    assert budgets.limit == pytest.approx((1 + GROWTH) * budgets.bound)
    largest = 0.0
    for trial in range(4):
        layerwise, end_to_end = {}, {}
        for output, (weight, bias) in names.items():
            budget, constants = budgets.layers[output], arrays(models[0])
            # as large as is allowed: longer weights, which enlarge all norms, or mostly along a few directions
            noise = generator.standard_normal(constants[weight].shape) ** 5 if trial else constants[weight]
            assert budget.end_to_end is not None and budget.end_to_end_offset is not None
            # float32 rounds the new weights: by a relative 6e-8, far above what the budget leaves
            layerwise[weight] = of_size(noise, 0.999 * (budget.layerwise or 1.0))
            end_to_end[weight] = of_size(noise, 0.999 * budget.end_to_end)
            end_to_end[bias] = of_size(generator.standard_normal(constants[bias].shape), 0.999 * budget.end_to_end_offset)
        new = as_pair(updated(models, layerwise))
        norms = difference_norms(new)
        for output, entry in layer_pairs(old, shapes_of(old)).items():
            limit = budgets.layers[output].layerwise_limit
            assert limit is None or norms[entry.node.name] <= limit * AGAIN
        new = as_pair(updated(models, end_to_end))
        assert measured(new) <= budgets.limit
        assert bound_of(new) <= budgets.limit * AGAIN
        largest = max(largest, bound_of(new) / budgets.bound)
        old_layers, new_layers = (layer_pairs(pair, shapes_of(pair)) for pair in (old, new))
        for output, budget in budgets.layers.items():
            found = LayerUpdate.between(old_layers[output], new_layers[output])
            assert budget.end_to_end is not None and budget.end_to_end_offset is not None
            assert found.within(budget.end_to_end, budget.end_to_end_offset, old_layers[output])
            assert not found.within(0.9 * budget.end_to_end, budget.end_to_end_offset, old_layers[output])
    assert largest > 1


def linear(removed: Array) -> Models:
    """A network whose only masked layer is a 1x1 convolution; `removed` is what the mask takes from it, 0 elsewhere."""
    build = Builder(0)
    outputs, inputs = removed.shape
    x = build.conv("x", 4, inputs, kernel=1)
    x = build.conv(x, inputs, outputs, kernel=1)
    name = [name for name in build.constants if name.endswith("weight")][-1]
    kept = np.where(removed == 0, 1.0, 0.0)
    build.constants[name] = (kept + removed)[:, :, None, None].astype(np.float32)
    dense = build.model(x, ("batch", outputs, 7, 7))
    return dense, with_arrays(dense, {name: kept[:, :, None, None]})


def masked_weight(models: Models) -> str:
    (name,) = (name for name, array in arrays(models[0]).items() if not np.array_equal(array, arrays(models[1])[name]))
    return name


def layer_of(models: Models) -> tuple[Pair, str]:
    """The pair, and the name of the masked layer's output."""
    pair, weight = as_pair(models), masked_weight(models)
    return pair, next(output for output, (name, _) in weights_of(pair).items() if name == weight)


def grows(models: Models, move: Array) -> float:
    """By how much an update of the masked weight enlarges the norm of the difference."""
    before, after = (difference_norms(as_pair(each)) for each in (models, updated(models, {masked_weight(models): move})))
    return max(after.values()) / max(before.values())


def test_the_layerwise_budget_is_tight_where_an_update_adds_to_what_the_mask_removes() -> None:
    # of rank one, for which the Frobenius norm is the spectral one
    removed = np.zeros((4, 4))
    removed[:, 2:] = np.outer([0.5, 1, 1.5, 2], [1, 3])
    models = linear(removed)
    pair, output = layer_of(models)
    budget = budgets_of(pair).layers[output]
    old = layer_pairs(pair, shapes_of(pair))[output]
    for factor, is_within in ((0.99, True), (1.01, False)):
        move = of_size(removed[:, :, None, None], factor * (budget.layerwise or 0.0))
        new = layer_pairs(as_pair(updated(models, {masked_weight(models): move})), shapes_of(pair))[output]
        assert LayerUpdate.between(old, new).within_layerwise(budget, old, growth=GROWTH) is is_within
        assert (grows(models, move) <= 1 + GROWTH) is is_within


def masked_rotation() -> Array:
    """(1 - M) Q of an orthogonal Q: its norm is above that of Q, which is 1; so is that of M Q."""
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))
    keep = np.tile([True, True, False, False], 8)
    keep = np.stack([np.random.default_rng(row).permutation(keep) for row in range(32)])
    return np.where(keep, 0, q)


def test_a_mask_may_enlarge_the_norm_of_an_update() -> None:
    removed = masked_rotation()
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))
    for part in (removed, q - removed):
        assert np.linalg.norm(part, 2) > 1.1 > 1 + 1e-9 > np.linalg.norm(q, 2)
        assert np.linalg.norm(part) <= np.linalg.norm(q)


@pytest.mark.parametrize(
    ("measure", "is_sound"),
    [
        (lambda move: float(np.linalg.norm(move)), True),
        # planted: S(M D) <= S(D)
        (lambda move: float(np.linalg.norm(move[:, :, 0, 0], 2)), False),
    ],
    ids=["Frobenius", "operator norm"],
)
def test_a_budget_in_operator_norm_is_found_to_be_false(measure: Callable[[Array], float], is_sound: bool) -> None:
    models = linear(masked_rotation())
    pair, output = layer_of(models)
    budget = budgets_of(pair).layers[output].layerwise
    assert budget is not None
    q, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((32, 32)))
    move = q[:, :, None, None]
    move = move * (0.99 * budget / measure(move))
    assert measure(move) < budget
    assert (grows(models, move) <= 1 + GROWTH) is is_sound


def test_a_budget_without_the_taps_is_found_to_be_false(monkeypatch: pytest.MonkeyPatch) -> None:
    build = Builder(0)
    x = build.conv("x", 4, 4)
    name = next(name for name in build.constants if name.endswith("weight"))
    # the same in every tap: the symbol is 9 times one of them at frequency 0, and the Frobenius norm 3 times
    kernel = np.ones((4, 4, 3, 3), np.float32)
    build.constants[name] = kernel
    dense = build.model(x, ("batch", 4, 7, 7))
    keep = np.array([True, True, False, False])[None, :, None, None]
    models = dense, with_arrays(dense, {name: np.where(keep, kernel, 0)})
    move = np.where(keep, 0, kernel)

    def factor_of_growth() -> float:
        pair, output = layer_of(models)
        return grows(models, of_size(move, 0.99 * (budgets_of(pair).layers[output].layerwise or 0.0)))

    assert factor_of_growth() <= 1 + GROWTH
    monkeypatch.setattr(update, "frobenius_factor", lambda *_: 1.0)
    assert factor_of_growth() > 1 + GROWTH


def test_an_end_to_end_budget_that_forgets_the_difference_is_found_to_be_false(monkeypatch: pytest.MonkeyPatch) -> None:
    removed = np.zeros((4, 4))
    removed[:, 2:] = np.outer([0.5, 1, 1.5, 2], [1, 3])
    models = linear(removed)

    def growth() -> float:
        pair, output = layer_of(models)
        budget = budgets_of(pair).layers[output].end_to_end
        assert budget is not None
        new = updated(models, {masked_weight(models): of_size(removed[:, :, None, None], 0.99 * budget)})
        return bound_of(as_pair(new)) / bound_of(pair)

    assert growth() <= (1 + GROWTH) * AGAIN
    through = data_free._through
    monkeypatch.setattr(
        data_free, "_through", lambda constants, inputs, allowed: through(constants, inputs, data_free._NOTHING)
    )
    assert growth() > (1 + GROWTH) * AGAIN


@pytest.mark.parametrize(
    ("attributes", "taps"), [({}, 9), ({"strides": [2, 2]}, 4), ({"dilations": [2, 2]}, 9), ({"strides": [3, 1]}, 3)]
)
def test_the_factor_of_the_frobenius_norm_is_one_of_the_operator_norm(attributes: dict[str, Any], taps: int) -> None:
    build = Builder(0)
    output = build.conv("x", 4, 4, **attributes)
    pair = as_pair((build.model(output, ("batch", 4, None, None)),) * 2)
    (entry,) = layer_pairs(pair, shapes_of(pair)).values()
    assert frobenius_factor(entry.node, entry.dense) == pytest.approx(np.sqrt(taps))


def test_statistics_of_its_own_let_the_sparse_file_move_as_well() -> None:
    models = random_pair(["conv"], 0, change="everything")
    pair = as_pair(models)
    budgets, names = budgets_of(pair), weights_of(pair)
    generator = np.random.default_rng(0)
    old = layer_pairs(pair, shapes_of(pair))
    assert {entry.spread for entry in old.values()} == {2}
    moves: list[dict[str, Array]] = [{}, {}]
    for output, (weight, bias) in names.items():
        budget = budgets.layers[output]
        for move, sign in zip(moves, (1, -1), strict=True):  # against one another, which is the worst
            assert budget.end_to_end is not None and budget.end_to_end_offset is not None
            dense = arrays(models[0])
            noise = np.random.default_rng(len(output)).standard_normal(dense[weight].shape)
            move[weight] = sign * of_size(noise, 0.999 * budget.end_to_end)
            move[bias] = sign * of_size(generator.standard_normal(dense[bias].shape), 0.999 * budget.end_to_end_offset)
    new_models = [with_arrays(m, {n: arrays(m)[n] + v for n, v in move.items()}) for m, move in zip(models, moves, strict=True)]
    new = as_pair((new_models[0], new_models[1]))
    assert budgets.limit is not None
    assert bound_of(pair) < bound_of(new) <= budgets.limit * AGAIN
    after = layer_pairs(new, shapes_of(new))
    for output, budget in budgets.layers.items():
        found = LayerUpdate.between(old[output], after[output])
        assert found.within(budget.end_to_end or 0, budget.end_to_end_offset or 0, old[output])


def test_a_layer_that_no_mask_touches_has_no_layerwise_limit_and_must_stay_the_same_in_both_files() -> None:
    models = random_pair(["conv"], 0)
    pair = as_pair(models)
    old, budget = layer_pairs(pair, shapes_of(pair))["y"], budgets_of(pair).layers["y"]
    assert (budget.spread, budget.layerwise, budget.layerwise_limit) == (0, None, None)
    name = weights_of(pair)["y"][0]
    both = layer_pairs(as_pair(updated(models, {name: np.ones((3, 4))})), shapes_of(pair))["y"]
    assert LayerUpdate.between(old, both).within_layerwise(budget, old, growth=GROWTH)
    one = (with_arrays(models[0], {name: arrays(models[0])[name] + 1}), models[1])
    assert not LayerUpdate.between(old, layer_pairs(as_pair(one), shapes_of(pair))["y"]).within_layerwise(
        budget, old, growth=GROWTH
    )


@pytest.mark.parametrize("shape", [(3,), (1, 3), (1,)])
def test_a_bias_that_is_broadcast_has_a_budget(shape: tuple[int, ...]) -> None:
    build = Builder(0)
    x = build.node("Flatten", build.node("GlobalAveragePool", "x"))
    bias = build.random(*shape)
    dense = build.model(build.node("Gemm", x, build.random(3, 4), bias, transB=1), ("batch", 3))
    pair = as_pair((dense, dense))
    (entry,) = layer_pairs(pair, shapes_of(pair)).values()
    assert entry.positions == 1
    assert np.array_equal(np.ravel(entry.dense_offset), np.broadcast_to(arrays(dense)[bias], (1, 3))[0])


def test_what_no_budget_covers_is_named() -> None:
    models = random_pair(["prelu", "conv"], 0)
    old = as_pair(models)
    layers = layer_pairs(old, shapes_of(old))
    (slope,) = (name for name, array in arrays(models[0]).items() if array.shape == (4, 1, 1))
    new = as_pair(updated(models, {slope: np.full((4, 1, 1), 0.1)}))
    assert other_changes(old, new, layers) == ("PRelu PRelu1",)
    (weight, _) = weights_of(old)["y"]
    assert other_changes(old, as_pair(updated(models, {weight: np.ones((3, 4))})), layers) == ()


def test_without_a_rule_there_is_a_layerwise_budget_and_no_other() -> None:
    build = Builder(0)
    x = layer(build, "conv", "x")
    x = build.node("Div", x, build.node("Abs", x))
    dense = build.model(x, ("batch", 4, 7, 7))
    (name,) = (name for name, array in arrays(dense).items() if array.ndim == 4)
    sparse = with_arrays(dense, {name: np.where(np.arange(4)[None, :, None, None] < 2, arrays(dense)[name], 0)})
    budgets = budgets_of(as_pair((dense, sparse)))
    assert (budgets.bound, budgets.limit, budgets.share) == (None, None, None)
    (budget,) = budgets.layers.values()
    assert budget.layerwise is not None and budget.layerwise > 0 and budget.end_to_end is None


def test_a_wider_growth_gives_a_wider_budget() -> None:
    pair = as_pair(random_pair(["residual"], 0))
    narrow, wide = (budgets_of(pair, growth) for growth in (0.01, 0.5))
    assert narrow.share is not None and wide.share is not None and 0 < 5 * narrow.share < wide.share
