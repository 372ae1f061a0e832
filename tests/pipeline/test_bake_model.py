"""Baking a mask set that was made for the network in another order of channels."""

import dataclasses
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

from masksparse_deploy.core.config import BakeOptions, ModelOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import MaskSet, fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.permutation.apply import permute
from masksparse_deploy.learn.permutation.find import find_permutations
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.pipeline.baking import bake_model
from tests.models.tiny_cnn import EXAMPLE_SHAPE, example_images, float_state, magnitude_masks, tiny_cnn
from tests.project import FACTORY, make_project

PATTERN = NMPattern(n=2, m=4)
IMAGES = example_images(16, seed=3)


def permuted_masks() -> MaskSet:
    """Magnitude masks of the project's network in the order of channels that keeps most."""
    model = tiny_cnn(seed=1)
    layers = survey_layers(model, probe_model(model, EXAMPLE_SHAPE), pattern=PATTERN).eligible
    permutations = find_permutations(model, layers, EXAMPLE_SHAPE, PATTERN, seed=0)
    assert permutations
    masks = magnitude_masks(permute(model, permutations))
    return dataclasses.replace(masks, permutations=permutations, source_sha256=fingerprint(float_state(model)))


def bake(folder: Path, masks: MaskSet) -> Path:
    make_project(folder)
    masks.write(folder / "masks.safetensors")
    bake_model(
        ModelOptions(factory=FACTORY, weights="model.safetensors"),
        folder / "masks.safetensors",
        BakeOptions(),
        Samples(IMAGES, np.zeros(len(IMAGES), np.int64)),
        folder=folder,
        out=folder,
        progress=silent,
    )
    return folder


def test_the_dense_file_computes_what_the_trained_network_does(tmp_path: Path) -> None:
    masks = permuted_masks()
    session = onnxruntime.InferenceSession(bake(tmp_path, masks) / "dense.onnx", providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = tiny_cnn(seed=1)(torch.from_numpy(IMAGES)).numpy()
    # The longest of four sums in a row has 16 * 9 terms: 4 * 144 * 2^-24 = 3.4e-5 of outputs near 1.
    np.testing.assert_allclose(session.run(None, {"images": IMAGES})[0], expected, rtol=0, atol=4e-5)


@pytest.mark.parametrize("left_out", ["block.conv1.weight", "block.bn1.running_mean"])
def test_an_order_that_changes_the_network_is_not_baked(tmp_path: Path, left_out: str) -> None:
    masks = permuted_masks()
    partly = tuple(permutation for permutation in masks.permutations if permutation.name != left_out)
    assert len(partly) < len(masks.permutations)
    with pytest.raises(UsageError, match="reordering channels changed the outputs"):
        bake(tmp_path, dataclasses.replace(masks, permutations=partly))
    assert not (tmp_path / "dense.onnx").exists()


def test_an_order_of_another_network_is_not_baked(tmp_path: Path) -> None:
    masks = permuted_masks()
    other = tuple(dataclasses.replace(permutation, name=f"net.{permutation.name}") for permutation in masks.permutations)
    with pytest.raises(ArtifactError, match="the network has no tensor of that name"):
        bake(tmp_path, dataclasses.replace(masks, permutations=other))
