"""Masked positions in certificates: bounds hold for random networks and masks, and what is forgotten is found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from masksparse_deploy.certify import operator_norm, recursion
from masksparse_deploy.certify.data_free import data_free_bound
from masksparse_deploy.certify.layers import layer_bound
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair, read_pair
from masksparse_deploy.certify.positions import LayerPositions, difference_norm
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.certificate import HYBRID, MEASURED_NORMS, MEASURED_RESIDUALS
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.graph.positions import MaskedPositions
from masksparse_deploy.graph.reader import parse_graph, weighted_layers
from tests.certify.masked import insert_where, random_keeps, with_random_positions
from tests.certify.networks import CHANNELS, SIZE, Builder, as_pair, random_images, random_pair
from tests.models.make_onnx import residual_pair

Array = npt.NDArray[Any]
CLAIMS = (MEASURED_NORMS, MEASURED_RESIDUALS, HYBRID)

networks = st.tuples(
    st.lists(st.sampled_from(["conv", "strided conv", "grouped conv", "residual", "Relu", "silu", "max pool"]), max_size=2),
    st.integers(0, 2**16),
    st.sampled_from(["nothing", "mask", "everything"]),
)
# where the masks are: in the sparse file as always, in both as between two masked networks, or in the dense one alone
sides = st.sampled_from(["sparse", "both", "dense"])


def masked_pair(kinds: list[str], seed: int, change: str, side: str = "sparse", constant: float = 0.0) -> Pair:
    dense, sparse = random_pair(kinds, seed, change=change)
    rate = (seed % 10) / 10
    if side != "sparse":
        dense = with_random_positions(dense, seed + 2, rate=rate, constant=constant)
    if side != "dense":
        sparse = with_random_positions(sparse, seed + 3, rate=rate, constant=constant)
    return as_pair((dense, sparse))


def distances(dense: Array, sparse: Array) -> Array:
    norms: Array = np.linalg.norm((dense - sparse).reshape(len(dense), -1), axis=1)
    return norms


@settings(max_examples=60, deadline=None)
@given(network=networks, side=sides, constant=st.sampled_from([0.0, 0.3]))
def test_bounds_hold_on_random_networks_and_masks(network: tuple[list[str], int, str], side: str, constant: float) -> None:
    kinds, seed, change = network
    pair, images, norms = masked_pair(kinds, seed, change, side, constant), random_images(2, seed), NormCache(grid=8)
    result = propagate(pair, images, norms, progress=silent)
    # propagate compares the tensors of every node too; 1e-12 for the rounding of the two evaluations
    rounding = 1e-12 * (1 + np.abs(result.dense).max())
    hybrid, residuals, from_norms = (result.bounds[claim] for claim in reversed(CLAIMS))
    assert result.missing == ()
    assert (distances(result.dense, result.sparse) <= hybrid + rounding).all()
    assert (hybrid <= residuals).all() and (residuals <= from_norms * (1 + 1e-12)).all()
    radius = float(np.linalg.norm(images.reshape(len(images), -1), axis=1).max())
    bound = data_free_bound(pair, radius=radius, shapes=result.shapes, norms=norms)
    assert from_norms.max() <= bound * (1 + 1e-6)


def test_the_networks_evaluated_are_those_of_the_files() -> None:
    dense, sparse = random_pair(["residual"], 4)
    sparse = with_random_positions(sparse, 0)
    images = random_images(3)
    result = propagate(as_pair((dense, sparse)), images, NormCache(grid=8), progress=silent)
    for model, found in ((dense, result.dense), (sparse, result.sparse)):
        graph = parse_graph(model.SerializeToString(), name="model")
        np.testing.assert_allclose(found, evaluate(graph, images)["y"], rtol=1e-12, atol=1e-12)


def test_a_mask_that_keeps_everything_changes_no_bound() -> None:
    dense, sparse = random_pair(["residual"], 5, change="everything")
    masked = sparse
    for name, keep in random_keeps(sparse, np.random.default_rng(0), 0.5).items():
        masked = insert_where(masked, name, np.ones_like(keep), offset=5.0)
    images, norms = random_images(3), NormCache(grid=8)
    plain, kept = (propagate(as_pair((dense, model)), images, norms, progress=silent) for model in (sparse, masked))
    for claim in CLAIMS:
        np.testing.assert_allclose(kept.bounds[claim], plain.bounds[claim], rtol=1e-13)
    radius: dict[str, Any] = {"radius": 5.0, "shapes": plain.shapes, "norms": norms}
    assert data_free_bound(as_pair((dense, masked)), **radius) == pytest.approx(
        data_free_bound(as_pair((dense, sparse)), **radius), rel=1e-13
    )


def one_layer(rate: float, *, constant: float = 0.0, change: str = "nothing") -> Pair:
    build = Builder(1)
    dense = build.model(build.conv("x", CHANNELS, CHANNELS), ("batch", CHANNELS, SIZE, SIZE))
    return as_pair((dense, with_random_positions(dense, 7, rate=rate, constant=constant)))


def test_one_layer_has_exactly_the_difference_of_the_sample() -> None:
    """Nothing but the dropped sums differs, and those are known."""
    result = propagate(one_layer(0.3), random_images(4), NormCache(grid=8), progress=silent)
    for claim in (MEASURED_RESIDUALS, HYBRID):
        np.testing.assert_allclose(result.bounds[claim], distances(result.dense, result.sparse), rtol=1e-8)
    assert (result.bounds[MEASURED_NORMS] > 1.2 * result.bounds[HYBRID]).all()


# operators that are convolutions of every kind, masked in either network or in both, against the norm of the matrix they are
layers = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**16),
        "kernel": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "strides": st.tuples(st.integers(1, 3), st.integers(1, 2)),
        "dilations": st.tuples(st.integers(1, 2), st.integers(1, 2)),
        "pads": st.tuples(*[st.integers(0, 2)] * 4),
        "group": st.sampled_from([1, 2, 4]),
        "rates": st.tuples(*[st.sampled_from([0.0, 0.1, 0.3, 0.6, 0.9])] * 2),
        "change": st.sampled_from([0.0, 0.1, 1.0]),
    }
)


@pytest.mark.slow
@settings(max_examples=1000, deadline=None)
@given(drawn=layers)
def test_the_norm_of_what_differs_is_bounded_for_random_layers(drawn: dict[str, Any]) -> None:
    generator = np.random.default_rng(drawn["seed"])
    attributes = {name: drawn[name] for name in ("strides", "dilations", "pads", "group")}
    node = Node(name="c", op="Conv", domain="", inputs=("x", "w"), outputs=("y",), attributes=attributes, metadata={})
    shape = (4, *generator.integers(5, 8, 2).tolist())
    dense = generator.standard_normal((4, 4 // drawn["group"], *drawn["kernel"]))
    sparse = dense * (generator.random(dense.shape) >= drawn["change"] / 2)
    unit = np.eye(int(np.prod(shape))).reshape(-1, *shape)
    outputs = [apply_node(node, [unit, weight], batch=None) for weight in (dense, sparse)]
    keeps = [generator.random(outputs[0].shape[2:]) >= rate for rate in drawn["rates"]]
    zeros = np.zeros(4)
    positions = LayerPositions(dense_keep=keeps[0], sparse_keep=keeps[1], dense_constant=zeros, sparse_constant=zeros)
    moved = outputs[0] * keeps[0] - outputs[1] * keeps[1]
    exact = float(np.linalg.norm(moved.reshape(len(unit), -1), 2))
    bound = difference_norm(node, dense, sparse, positions, shape, NormCache(grid=8)).value
    assert exact <= bound * (1 + 1e-12)


def test_few_dropped_positions_have_a_smaller_norm_than_all() -> None:
    pair = one_layer(0.1)
    (dense,), (sparse,) = weighted_layers(pair.dense), weighted_layers(pair.sparse)
    shapes = {"x": (CHANNELS, SIZE, SIZE), dense.node.outputs[0]: (CHANNELS, SIZE, SIZE)}
    bound = layer_bound(dense, sparse, "w", shapes, NormCache(grid=8), pair.positions(dense.node))
    assert bound.method == "positions"
    assert bound.difference_norm == bound.removed_norm < 0.9 * bound.dense_norm
    assert bound.sparse_norm == bound.dense_norm


def test_other_constants_are_part_of_the_layers_bias(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    keep = np.arange(16).reshape(4, 4) % 5 > 0
    certificates = []
    for offset in (0.0, 0.5):
        paths = write(tmp_path, dense, insert_where(dense, "layer1.conv1", keep, offset=offset))
        images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
        samples = Samples(images, np.zeros(6, dtype=np.int64))
        certificates.append(certify(*paths, samples, CertifyOptions(sample_count=6, grid=8)))
    one, other = (certificate.layers for certificate in certificates)
    assert [layer.node for layer in one] == [layer.node for layer in other] == ["layer1.conv1"]
    assert one[0].bias_difference == 0
    # float32 rounding of the constants
    assert other[0].bias_difference == pytest.approx(0.5 * 16**0.5, rel=1e-6)
    assert one[0].output_positions == 16
    assert one[0].difference_norm == other[0].difference_norm


def write(folder: Path, dense: onnx.ModelProto, sparse: onnx.ModelProto) -> tuple[Path, Path]:
    paths = folder / "dense.onnx", folder / "sparse.onnx"
    for path, model in zip(paths, (dense, sparse), strict=True):
        path.write_bytes(model.SerializeToString())
    return paths


def test_a_layer_is_listed_whose_positions_alone_are_masked(tmp_path: Path) -> None:
    dense, sparse = residual_pair()
    paths = write(tmp_path, dense, insert_where(sparse, "layer2.shortcut", np.eye(2, dtype=np.bool_)))
    pair = read_pair(*paths)
    assert list(pair.sparse_masks) == ["layer2.shortcut.out"]
    assert pair.dense_masks == {}


# --- planted faults: each is found by the comparison with what is measured


def test_forgotten_dropped_positions_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = masked_pair([], 13, "nothing")
    propagate(pair, random_images(2), NormCache(grid=8), progress=silent)
    monkeypatch.setattr(Pair, "positions", lambda self, node: None)
    with pytest.raises(AssertionError, match="of Conv 'Conv0' is below the measured"):
        propagate(pair, random_images(2), NormCache(grid=8), progress=silent)


def test_a_forgotten_other_constant_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair, true = one_layer(0.3, constant=2.0), LayerPositions.of

    def without_constants(name: str, dense: Any, sparse: Any) -> LayerPositions | None:
        found = true(name, dense, sparse)
        bias = pair.dense.constants[pair.dense.nodes[0].inputs[2]].astype(np.float64)
        return None if found is None else replace(found, sparse_constant=bias)

    propagate(pair, random_images(2), NormCache(grid=8), progress=silent)
    monkeypatch.setattr(LayerPositions, "of", without_constants)
    with pytest.raises(AssertionError, match="of Conv 'Conv0' is below the measured"):
        propagate(pair, random_images(2), NormCache(grid=8), progress=silent)


def test_a_mask_applied_to_the_wrong_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = masked_pair(["conv"], 13, "everything")
    swapped = replace(pair, dense_masks=pair.sparse_masks, sparse_masks={})
    true = swapped.positions
    monkeypatch.setattr(Pair, "positions", lambda self, node: pair_positions(true(node)))
    with pytest.raises(AssertionError, match="is below the measured"):
        propagate(swapped, random_images(2), NormCache(grid=8), progress=silent)


def pair_positions(found: LayerPositions | None) -> LayerPositions | None:
    """The same with the two networks exchanged."""
    if found is None:
        return None
    return LayerPositions(
        dense_keep=found.sparse_keep,
        sparse_keep=found.dense_keep,
        dense_constant=found.sparse_constant,
        sparse_constant=found.dense_constant,
    )


def test_elements_masked_in_the_wrong_place_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The elementwise bound is 0 where the sparse network computes nothing, and only there."""
    pair = masked_pair(["conv"], 23, "mask")
    true = recursion.enlarge

    def everywhere_zero(*arguments: Any) -> Array:
        return np.zeros_like(true(*arguments))

    propagate(pair, random_images(2), NormCache(grid=8), progress=silent)
    monkeypatch.setattr(recursion, "enlarge", everywhere_zero)
    with pytest.raises(AssertionError, match="is below the measured"):
        propagate(pair, random_images(2), NormCache(grid=8), progress=silent)


def test_a_norm_of_all_but_the_neighbours_is_too_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What two dropped positions have in common counts: without it the bound is below the norm of the matrix."""
    node = Node(name="c", op="Conv", domain="", inputs=("x", "w"), outputs=("y",), attributes={"pads": (1,) * 4}, metadata={})
    kernel, shape = np.ones((1, 1, 3, 3)), (1, 6, 6)
    unit = np.eye(36).reshape(-1, *shape)
    keep = np.zeros((6, 6), dtype=np.bool_)
    keep[2:4, 2:4] = True
    exact = float(np.linalg.norm((apply_node(node, [unit, kernel], batch=None) * keep).reshape(36, -1), 2))
    none = np.zeros(1)
    positions = LayerPositions(dense_keep=keep, sparse_keep=np.zeros_like(keep), dense_constant=none, sparse_constant=none)

    def norm() -> float:
        return difference_norm(node, kernel, kernel, positions, shape, NormCache(grid=8)).value

    # four positions that share inputs, of one channel: the matrix of what they share is the Gram matrix itself
    assert exact <= norm() <= exact * (1 + 1e-6)
    true = operator_norm.perron_bound
    monkeypatch.setattr(operator_norm, "perron_bound", lambda kept, sizes: true(kept, {(0, 0): sizes[0, 0]}))
    assert norm() < 0.7 * exact


# --- files


def test_a_where_of_another_form_is_refused_with_its_path(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    sparse = insert_where(dense, "layer1.conv1", np.ones((4, 4), dtype=np.bool_))
    where = next(node for node in sparse.graph.node if node.op_type == "Where")
    where.input[0], where.input[1] = where.input[0], "stem.out"
    paths = write(tmp_path, dense, sparse)
    with pytest.raises(ArtifactError, match=r"sparse.onnx: node layer1.conv1.positions is annotated with"):
        read_pair(*paths)


def test_a_where_that_says_nothing_of_masks_makes_another_graph(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    sparse = insert_where(dense, "layer1.conv1", np.ones((4, 4), dtype=np.bool_))
    for node in sparse.graph.node:
        if node.op_type == "Where":
            del node.metadata_props[:]
    with pytest.raises(ArtifactError, match="do not belong together"):
        read_pair(*write(tmp_path, dense, sparse))


def test_a_constant_that_is_not_finite_is_refused(tmp_path: Path) -> None:
    dense, _ = residual_pair()
    sparse = insert_where(dense, "layer1.conv1", np.eye(4, dtype=np.bool_), offset=float("nan"))
    samples = Samples(np.zeros((2, 3, 8, 8), dtype=np.float32), np.zeros(2, dtype=np.int64))
    with pytest.raises(ArtifactError, match=r"masked positions of layer1.conv1 hold NaN or infinite values; bake the masks"):
        certify(*write(tmp_path, dense, sparse), samples, CertifyOptions(sample_count=2, grid=8))


def test_masked_positions_keep_the_dtype() -> None:
    node = Node(name="", op="Conv", domain="", inputs=(), outputs=("y",), attributes={}, metadata={})
    masked = MaskedPositions(
        conv=node, where=node, layer="", keep=np.array([[True, False]]), constant=np.array([3, 4], dtype=np.float16)
    )
    result = masked.apply(np.ones((1, 2, 1, 2), dtype=np.float32))
    assert result.dtype == np.float32
    assert result.tolist() == [[[[1, 3]], [[1, 4]]]]
