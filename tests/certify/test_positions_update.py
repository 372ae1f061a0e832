"""Budgets of updates where positions are masked: what one network does not compute moves by the whole update of the other."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.certify.layers import layer_bound
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.positions import difference_norm
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.update import (
    LayerPair,
    LayerUpdate,
    find_budgets,
    frobenius_factor,
    layer_pairs,
    other_changes,
    removed_change,
)
from masksparse_deploy.core.progress import silent
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.graph.reader import weighted_layers
from tests.certify.masked import insert_where
from tests.certify.networks import CHANNELS, SIZE, Builder, as_pair, random_images

Array = npt.NDArray[Any]
GROWTH, RADIUS = 0.1, 20.0
SHAPE = (CHANNELS, SIZE, SIZE)
KEEP = np.random.default_rng(8).random((SIZE, SIZE)) >= 0.3


def network() -> onnx.ModelProto:
    build = Builder(1)
    return build.model(build.conv("x", CHANNELS, CHANNELS), ("batch", *SHAPE))


def moved(model: onnx.ModelProto, weight: Array, bias: float = 0.0) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        array = numpy_helper.to_array(tensor)
        change = weight if array.ndim == 4 else bias
        tensor.CopyFrom(numpy_helper.from_array((array + change).astype(np.float32), tensor.name))
    return copy


def masked(dense: onnx.ModelProto, *, offset: float = 0.0, keep: Array = KEEP, zeros: Array | None = None) -> Pair:
    """The network and its twin with masked positions, and weights where `zeros` are."""
    sparse = dense
    if zeros is not None:
        kernel = next(numpy_helper.to_array(tensor) for tensor in dense.graph.initializer if len(tensor.dims) == 4)
        sparse = moved(dense, np.where(zeros, -kernel, 0))
    return as_pair((dense, insert_where(sparse, "Conv0", keep, offset=offset)))


def only_layer(pair: Pair) -> LayerPair:
    (layer,) = layer_pairs(pair, {"x": SHAPE, pair.dense.nodes[0].outputs[0]: SHAPE}).values()
    return layer


def exact_norm(pair: Pair) -> float:
    """Of what the two layers do differently, as a matrix."""
    unit = np.eye(int(np.prod(SHAPE))).reshape(-1, *SHAPE)
    weights = [graph.constants[pair.dense.nodes[0].inputs[1]].astype(np.float64) for graph in (pair.dense, pair.sparse)]
    dense, sparse = (apply_node(pair.dense.nodes[0], [unit, weight, None], batch=None) for weight in weights)
    return float(np.linalg.norm((dense - sparse * KEEP).reshape(len(unit), -1), 2))


def bounds(pair: Pair, norms: NormCache) -> tuple[float, float]:
    """Of what the layers do differently, and of what masks remove."""
    (dense,), (sparse,) = weighted_layers(pair.dense), weighted_layers(pair.sparse)
    found = layer_bound(dense, sparse, "w", {"x": SHAPE, dense.node.outputs[0]: SHAPE}, norms, pair.positions(dense.node))
    return found.difference_norm, found.removed_norm


@pytest.mark.parametrize(("zeros", "spread"), [(None, 1), (np.arange(4)[:, None, None] % 2 == 1, 2)])
def test_no_update_within_the_budget_breaks_the_layers_claim(zeros: Array | None, spread: int) -> None:
    norms, dense = NormCache(grid=8), network()
    old = masked(dense, zeros=zeros)
    layer, name = only_layer(old), old.dense.nodes[0].outputs[0]
    difference, _ = bounds(old, norms)
    shapes = propagate(old, random_images(1), norms, progress=silent).shapes
    arguments: dict[str, Any] = {"growth": GROWTH, "radius": RADIUS, "shapes": shapes, "norms": norms}
    found = find_budgets(old, difference_norms={"Conv0": difference}, **arguments)
    budget = found.layers[name]
    assert layer.spread == budget.spread == spread
    assert budget.layerwise is not None and budget.layerwise_limit == pytest.approx((1 + GROWTH) * difference)
    kernel, generator = layer.dense, np.random.default_rng(2)
    for direction in (kernel, generator.standard_normal(kernel.shape) ** 5):
        # float32 rounds the new weights: by a relative 6e-8, far above what the budget leaves
        step = direction * (0.999 * budget.layerwise / np.linalg.norm(direction))
        new = masked(moved(dense, step), zeros=zeros)
        assert exact_norm(new) <= budget.layerwise_limit
        update = LayerUpdate.between(layer, only_layer(new))
        assert update.within_layerwise(budget, layer, growth=GROWTH)
        assert other_changes(old, new, {name: layer}) == ()
        far = LayerUpdate.between(layer, only_layer(masked(moved(dense, 2.1 * step), zeros=zeros)))
        assert not far.within_layerwise(budget, layer, growth=GROWTH)


def test_an_update_that_moves_only_what_is_dropped_counts() -> None:
    """Planted: compared by D - D~ alone, which is 0, any update would keep the claim."""
    dense = network()
    old, new = masked(dense), masked(moved(dense, 3 * only_layer(masked(dense)).dense))
    update = LayerUpdate.between(only_layer(old), only_layer(new))
    assert exact_norm(new) > 3 * exact_norm(old)
    assert update.difference == pytest.approx(update.dense)
    assert np.linalg.norm(only_layer(new).dense - only_layer(new).sparse) == 0


@pytest.mark.parametrize("zeros", [None, np.arange(4)[:, None, None] % 2 == 1])
def test_what_the_masks_remove_grows_by_no_more_than_is_said(zeros: Array | None) -> None:
    norms, dense = NormCache(grid=8), network()
    step = np.random.default_rng(3).standard_normal((4, 4, 3, 3)) / 10
    old, new = masked(dense, zeros=zeros), masked(moved(dense, step), zeros=zeros)
    added, frobenius = removed_change(only_layer(old), only_layer(new), SHAPE, norms)
    assert exact_norm(new) <= bounds(old, norms)[1] + added
    assert added <= frobenius
    layer = only_layer(new)
    whole = difference_norm(layer.node, step, np.zeros_like(step), None, SHAPE, norms).value
    assert added <= 1.5 * whole <= 1.5 * frobenius_factor(layer.node, step) * np.linalg.norm(step)


def test_other_positions_and_constants_are_named() -> None:
    dense = network()
    old, layers = masked(dense), {"Conv0.out": only_layer(masked(dense))}
    other = KEEP.copy()
    other[tuple(np.argwhere(KEEP)[0])] = False
    assert other_changes(old, masked(dense), layers) == ()
    # the constant follows the bias
    assert other_changes(old, masked(moved(dense, np.zeros(1), bias=0.5)), layers) == ()
    assert other_changes(old, masked(dense, keep=other), layers) == ("Conv Conv0",)
    assert other_changes(old, masked(dense, offset=0.5), layers) == ("Conv Conv0",)
    assert other_changes(old, as_pair((dense, dense)), layers) == ("Conv Conv0",)
