"""Masks carried over to new weights, and how well they suit these."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.config import MaskOptions, ModelOptions, UpdateOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.pipeline.update_masks import NETWORK, carried_over, fit_of_masks, masked_weights, source_of_statistics
from masksparse_deploy.pipeline.update_report import advice
from tests.models.tiny_cnn import example_images, magnitude_masks, tiny_cnn
from tests.pipeline.test_bake_model import permuted_masks
from tests.project import FACTORY, make_project

OPTIONS = MaskOptions(calibration_count=32, batch_size=16)


def mask_of(keep: list[list[int]], pattern: str = "2:4") -> MaskSet:
    parsed = parse_pattern(pattern)
    mask = LayerMask(weight_name="a.weight", keep=np.array(keep, dtype=bool), group_axis=1, pattern=parsed)
    return MaskSet(layers={"a.weight": mask}, source_sha256="", method="magnitude")


def test_what_a_mask_keeps_is_held_against_the_best_of_its_pattern() -> None:
    masks = mask_of([[1, 1, 0, 0]])
    old, new = np.array([[4.0, 3.0, 0.0, 0.0]]), np.array([[4.0, 0.0, 3.0, 0.0]])
    layer, network = fit_of_masks(masks, {"a.weight": new}, {"a.weight": old}, points=2.0)
    assert (layer.layer, network.layer, layer.pattern) == ("a", NETWORK, "2:4")
    assert (layer.norm_before, layer.magnitude_before) == (1.0, 1.0)
    # 4 is kept of the vector (4, 3), and 4 of the magnitude 7
    assert layer.norm == pytest.approx(4 / 5) and layer.magnitude == pytest.approx(4 / 7)
    assert layer.aged and network.aged
    (layer, _) = fit_of_masks(masks, {"a.weight": new}, {"a.weight": old}, points=21.0)
    assert not layer.aged
    (layer, _) = fit_of_masks(masks, {"a.weight": new}, None, points=2.0)
    assert (layer.norm_before, layer.aged) == (None, None)


def test_the_best_blocks_are_those_of_the_largest_sums() -> None:
    # two groups of two outputs and two inputs each, of which one is kept
    weight = np.array([[3.0, 1], [3, 1], [1, 2], [1, 2]])
    masks = mask_of([[1, 0], [1, 0], [1, 0], [1, 0]], "1x2@0.5")
    (layer, network) = fit_of_masks(masks, {"a.weight": weight}, None, points=2.0)
    # 3 + 3 + 1 + 1 is kept, 3 + 3 + 2 + 2 could be
    assert (layer.pattern, layer.magnitude) == ("1x2@0.5", pytest.approx(8 / 10))
    assert network.norm == pytest.approx(np.sqrt((9 + 9 + 1 + 1) / (9 + 9 + 4 + 4)))


def test_the_best_transposable_mask_is_the_exact_one() -> None:
    weight = np.array([[9.0, 8, 1, 1], [9, 1, 8, 1], [1, 8, 1, 8], [1, 1, 9, 9]])
    keep = [[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]]
    (layer, _) = fit_of_masks(mask_of(keep, "T2:4"), {"a.weight": weight}, None, points=2.0)
    # by rows alone the best would keep the two largest of each row, which here hold in the columns as well
    best = np.sqrt((np.sort(weight**2, axis=1)[:, 2:]).sum())
    assert layer.norm == pytest.approx(np.linalg.norm(weight[np.array(keep, dtype=bool)]) / best)
    assert layer.norm < 1


def test_weights_that_are_zero_lose_nothing() -> None:
    (layer, _) = fit_of_masks(mask_of([[1, 1, 0, 0]]), {"a.weight": np.zeros((1, 4))}, None, points=2.0)
    assert (layer.norm, layer.magnitude) == (1.0, 1.0)


def test_the_advice_names_the_layers_that_lost_most() -> None:
    masks = mask_of([[1, 1, 0, 0]])
    weights = {"a.weight": np.array([[4.0, 3.0, 0.0, 0.0]])}
    relearn, sentence = advice(fit_of_masks(masks, weights, weights, points=2.0), points=2.0)
    assert relearn is False and "no layer fell by more than 2 points" in sentence
    other = {"a.weight": np.array([[4.0, 0.0, 3.0, 0.0]])}
    relearn, sentence = advice(fit_of_masks(masks, other, weights, points=2.0), points=2.0)
    assert relearn is True
    assert sentence == (
        "Learn the masks again: they keep 80.0% of the norm that the best 2:4 masks would keep of the new weights, 100.0% of "
        "the old ones; more than 2 points were lost in a."
    )


@pytest.mark.parametrize(
    ("option", "has_statistics", "source"),
    [
        ("auto", True, "re-estimated"),
        ("auto", False, "the checkpoint's"),
        ("keep", True, "kept"),
        ("keep", False, "the checkpoint's"),
        ("reestimate", False, "re-estimated"),
        ("checkpoint", True, "the checkpoint's"),
    ],
)
def test_where_statistics_come_from(option: str, has_statistics: bool, source: str) -> None:
    masks = magnitude_masks(tiny_cnn(), new_statistics=has_statistics)
    assert source_of_statistics(masks, UpdateOptions(statistics=option)) == source


def test_weights_that_the_mask_set_brought_are_left_behind() -> None:
    model = tiny_cnn()
    masks = magnitude_masks(model, new_statistics=True)
    name = next(iter(masks.layers))
    fitted = replace(masks, weights={name: np.where(masks.layers[name].keep, np.float32(1), np.float32(0))})
    new = carried_over(fitted, tiny_cnn(1), source_sha256="new", statistics="kept", train=None, options=OPTIONS)
    assert dict(new.weights) == {} and new.source_sha256 == "new"
    assert new.statistics.keys() == masks.statistics.keys()
    assert {n: mask.digest for n, mask in new.layers.items()} == {n: mask.digest for n, mask in masks.layers.items()}


def test_statistics_are_those_of_the_masked_network_with_the_new_weights() -> None:
    train = Samples(example_images(32))
    model = tiny_cnn(1)
    masks = magnitude_masks(tiny_cnn())
    new = carried_over(masks, model, source_sha256="new", statistics="re-estimated", train=train, options=OPTIONS)
    with torch.no_grad():
        first = model.conv(torch.from_numpy(train.images))
    mean = first.mean((0, 2, 3)).numpy()
    assert np.abs(new.statistics["bn.running_mean"] - mean).max() < 1e-5
    assert set(new.statistics) == {n for n in model.state_dict() if n.endswith(("running_mean", "running_var"))}


def test_statistics_are_those_of_a_network_that_leaves_positions_out() -> None:
    train = Samples(example_images(64))
    keep = np.arange(16).reshape(4, 4) % 3 > 0
    positions = {"block.conv1": PositionMask(layer="block.conv1", keep=keep)}
    masks = MaskSet(layers={}, source_sha256="", method="positions", positions=positions)
    name, options = "block.bn1.running_mean", OPTIONS.model_copy(update={"augment": "none"})
    arguments = {"source_sha256": "", "statistics": "re-estimated", "train": train, "options": options}
    carried, dense = (
        carried_over(chosen, tiny_cnn(), **arguments).statistics[name] for chosen in (masks, replace(masks, positions={}))
    )
    # The mean of what is dropped is 0.
    assert np.abs(carried - dense).max() > 0.01
    (network,) = fit_of_masks(masks, {}, None, points=2.0)
    assert (network.layer, network.norm) == (NETWORK, 1.0)


def test_masks_of_a_network_in_another_order_of_channels(tmp_path: Path) -> None:
    make_project(tmp_path)
    masks, train = permuted_masks(), Samples(example_images(32))
    options = ModelOptions(factory=FACTORY, weights="model.safetensors")
    source_sha256, weights = masked_weights(options, tmp_path, masks)
    assert source_sha256 == masks.source_sha256
    # magnitude masks are the best, but only for the order that they were made for
    assert all(fit.norm == 1 for fit in fit_of_masks(masks, weights, None, points=2.0))
    (_, as_trained) = masked_weights(options, tmp_path, replace(masks, permutations=()))
    assert any(fit.norm < 0.99 for fit in fit_of_masks(masks, as_trained, None, points=2.0))

    model = tiny_cnn(1)
    new = carried_over(masks, model, source_sha256="", statistics="re-estimated", train=train, options=OPTIONS)
    assert new.permutations == masks.permutations
    (order,) = (entry.order for entry in masks.permutations if (entry.name, entry.axis) == ("conv.weight", 0))
    with torch.no_grad():
        mean = model.conv(torch.from_numpy(train.images)).mean((0, 2, 3)).numpy()
    assert np.abs(new.statistics["bn.running_mean"] - mean[order]).max() < 1e-5
    assert np.abs(mean - mean[order]).max() > 1e-3


def test_masks_of_another_network_are_refused() -> None:
    masks = magnitude_masks(tiny_cnn())
    with pytest.raises(
        ArtifactError, match=r"mask of block.conv1.weight, shape \(16, 8, 3, 3\): the network has no such param"
    ):
        carried_over(masks, torch.nn.Linear(4, 4), source_sha256="", statistics="the checkpoint's", train=None, options=OPTIONS)
    model = tiny_cnn()
    model.block.conv1 = torch.nn.Conv2d(4, 16, 3)
    with pytest.raises(
        ArtifactError, match=r"the network's parameter has the shape \(16, 4, 3, 3\); the masks are for another"
    ):
        carried_over(masks, model, source_sha256="", statistics="the checkpoint's", train=None, options=OPTIONS)
