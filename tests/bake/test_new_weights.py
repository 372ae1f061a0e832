"""Masks that come with new weights: the sparse twin has them, the dense twin has the trained ones."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from safetensors.numpy import load_file

from masksparse_deploy.bake import run
from masksparse_deploy.bake.run import bake
from masksparse_deploy.bake.twins import structural_differences
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import read_graph
from tests.models.narrow_cnn import narrow_cnn
from tests.models.tiny_cnn import EXAMPLE_SHAPE, example_images, float_state, magnitude_masks, tiny_cnn
from tests.models.transposable import transposable_masks


def bake_into(out: Path, model: torch.nn.Module, masks: MaskSet) -> BakeReport:
    return bake(
        model,
        masks,
        BakeOptions(),
        example_shape=EXAMPLE_SHAPE,
        source_sha256=masks.source_sha256,
        out=out,
        probe_images=example_images(),
    )


def outputs(path: Path) -> np.ndarray:
    (found,) = onnxruntime.InferenceSession(path).run(None, {"images": example_images()})
    return np.asarray(found)


def test_each_twin_computes_what_its_weights_do(tmp_path: Path) -> None:
    model = tiny_cnn()
    masks = transposable_masks(model, new_weights=True, new_statistics=True)
    before = {name: value.copy() for name, value in float_state(model).items()}
    report = bake_into(tmp_path, model, masks)
    assert report.weights_updated
    assert report.statistics_updated
    assert all(layer.violation_count == 0 and layer.density == 0.5 for layer in report.layers)
    assert all(checkpoint.violation_count == 0 for layer in report.layers for checkpoint in layer.checkpoints)
    for name, value in float_state(model).items():
        np.testing.assert_array_equal(value, before[name])  # the given model is left as it was
    assert structural_differences(read_graph(tmp_path / "dense.onnx"), read_graph(tmp_path / "sparse.onnx")) == ()
    probe = load_file(tmp_path / "probe.safetensors")
    state = model.state_dict()
    for twin in ("dense", "sparse"):
        if twin == "sparse":
            for name, value in {**masks.weights, **masks.statistics}.items():
                state[name].copy_(torch.tensor(value))
        with torch.no_grad():
            expected = model(torch.from_numpy(example_images())).numpy()
        np.testing.assert_array_equal(probe[f"{twin}_outputs"], expected)
        # Folding and summation order: sums of at most 144 terms of size one, 144 * 2^-24, about 1e-5
        np.testing.assert_allclose(outputs(tmp_path / f"{twin}.onnx"), expected, atol=1e-5, rtol=0)
    assert np.abs(probe["dense_outputs"] - probe["sparse_outputs"]).max() > 1e-3


def test_padded_layers_take_new_weights_under_old_statistics(tmp_path: Path) -> None:
    model = narrow_cnn()
    state = float_state(model)
    pattern, name = NMPattern(n=2, m=4), "conv2.weight"
    assert state[name].shape[1] % 4
    keep = pattern.keep_largest(np.abs(state[name]), group_axis=1)
    mask = LayerMask(weight_name=name, keep=keep, group_axis=1, pattern=pattern)
    new = np.where(keep, state[name] * np.float32(1.5), np.float32(0))
    empty = magnitude_masks(model, ())
    report = bake_into(tmp_path, model, replace(empty, layers={name: mask}, method="adaprune", weights={name: new}))
    assert name in {layer.weight for layer in report.padded}
    assert report.weights_updated
    assert not report.statistics_updated
    model.load_state_dict({**model.state_dict(), name: torch.tensor(new)})
    with torch.no_grad():
        expected = model(torch.from_numpy(example_images())).numpy()
    # As above, with sums of at most 108 terms.
    np.testing.assert_allclose(outputs(tmp_path / "sparse.onnx"), expected, atol=1e-5, rtol=0)


def no_such_parameter(masks: MaskSet) -> MaskSet:
    return replace(masks, weights={**masks.weights, "block.conv9.weight": np.zeros((1,), np.float32)})


def another_shape(masks: MaskSet) -> MaskSet:
    return replace(masks, weights={**masks.weights, "fc.bias": np.zeros((11,), np.float32)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            no_such_parameter,
            "new weight block.conv9.weight of the mask set, shape (1,): the parameter is not in the model; the",
        ),
        (another_shape, "new weight fc.bias of the mask set, shape (11,): the parameter has shape (10,) there; the masks were"),
    ],
)
def test_weights_for_another_model_are_refused(tmp_path: Path, change: Callable[[MaskSet], MaskSet], message: str) -> None:
    model = tiny_cnn()
    masks = change(transposable_masks(model, new_weights=True))
    before = {name: value.copy() for name, value in float_state(model).items()}
    with pytest.raises(ArtifactError, match=re.escape(message)):
        bake_into(tmp_path, model, masks)
    for name, value in float_state(model).items():
        np.testing.assert_array_equal(value, before[name])
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_holds_other_weights_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second export is made from the trained weights, as if the new ones had been forgotten."""
    made: list[bytes] = []
    export: Any = run.export_onnx

    def forgetful(*arguments: Any, **options: Any) -> bytes:
        made.append(made[0] if made else export(*arguments, **options))
        return made[-1]

    monkeypatch.setattr(run, "export_onnx", forgetful)
    with pytest.raises(ArtifactError, match=r"constant block\.conv1\.weight is not the trained weight of that name"):
        bake_into(tmp_path, tiny_cnn(), transposable_masks(tiny_cnn(), new_weights=True))
    assert len(made) == 2
