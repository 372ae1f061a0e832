"""The pattern "auto:M" in the learn stage."""

import re
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import read_mask_set
from masksparse_deploy.learn.adaprune import automatic_m
from masksparse_deploy.learn.run import MASKS, learn
from tests.learn.adaprune.test_source import emptied
from tests.learn.networks import labelled_by_network


def run(folder: Path, fractions: tuple[float, ...], **change: object) -> LearnReport:
    """Learn for the tiny network with these fractions of zeros in its three layers."""
    save_file(emptied(fractions)[0].state_dict(), folder / "model.safetensors")
    samples = labelled_by_network(64, seed=1)
    np.savez(folder / "data.npz", images=samples.images, labels=samples.labels)
    return learn(
        ModelOptions(factory="tests.models.tiny_cnn:tiny_cnn", weights="model.safetensors"),
        DataOptions(train="data.npz", test="data.npz"),
        MaskOptions.model_validate({"pattern": "auto:8", "calibration_count": 32, **change}),
        folder=folder,
        out=folder,
    )


@pytest.mark.parametrize("method", ["magnitude", "adaprune"])
def test_zeros_choose_the_pattern(tmp_path: Path, method: str) -> None:
    report = run(tmp_path, (0.75, 0.75, 0.75), method=method)
    assert report.pattern == "4:8"
    assert {layer.density for layer in report.layers} == {0.5}
    assert {str(mask.pattern) for mask in read_mask_set(tmp_path / MASKS).layers.values()} == {"4:8"}


def test_a_dense_network_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mask\.pattern auto:8: 0\.0% of the weights to mask are zero"):
        run(tmp_path, (0.0, 0.0, 0.0), method="adaprune")


@pytest.mark.parametrize("text", ["2:4", "T2:4", "auto", "automatic:8"])
def test_other_patterns_are_not_automatic(text: str) -> None:
    assert automatic_m(MaskOptions(pattern=text)) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "auto:1"}, "mask.pattern auto:1: M must be from 2 to 32; for example auto:8"),
        ({"pattern": "auto:64"}, "mask.pattern auto:64: M must be from 2 to 32; for example auto:8"),
        ({"method": "transposable"}, "says nothing about transposable masks; name the pattern, for example T4:8"),
        ({"assignment": "selection.json"}, "mask.assignment is for one pattern; give the one that it was made for"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        automatic_m(MaskOptions.model_validate({"pattern": "auto:8", **change}))
