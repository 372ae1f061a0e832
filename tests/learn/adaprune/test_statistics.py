"""Whether new batch-norm statistics are kept with fitted weights."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.batch_norm import running_statistics
from masksparse_deploy.learn.choose import choose
from masksparse_deploy.learn.methods import Methods
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.adaprune.test_sparsifier import TRAIN, survey
from tests.models.tiny_cnn import tiny_cnn


@pytest.fixture
def methods(tmp_path: Path) -> Methods:
    model = tiny_cnn()
    options = MaskOptions(method="adaprune", batch_size=16, calibration_count=64, augment="none")
    return Methods(
        model=model,
        layers=survey(model),
        train=TRAIN,
        options=options,
        pattern=NMPattern(n=2, m=4),
        may_decide=False,
        device=torch.device("cpu"),
        out=tmp_path,
        progress=lambda *_: None,
    )


def test_divergence_is_that_of_the_answers(methods: Methods) -> None:
    assert methods.divergence(Outcome(masks={})) == 0.0
    dropped, fitted = methods.magnitude(), methods.adaprune()
    assert methods.divergence(methods.run(fitted, permuted=False)) < methods.divergence(methods.run(dropped, permuted=False))
    moved = {name: value + np.float32(1) for name, value in running_statistics(methods.model).items()}
    assert methods.divergence(Outcome(masks={}, statistics=moved)) > 0.01
    # In another order of channels the dense network answers the same.
    order = AxisPermutation(name="fc.weight", axis=0, order=np.arange(10))
    assert methods.divergence(Outcome(masks={}, permutations=(order,))) == 0.0


@pytest.mark.parametrize("spoilt", [False, True])
def test_statistics_of_other_images_are_not_kept(methods: Methods, monkeypatch: pytest.MonkeyPatch, spoilt: bool) -> None:
    if spoilt:

        def recalibrated(self: Methods, outcome: Outcome) -> Outcome:
            moved = {name: value + np.float32(1) for name, value in running_statistics(self.model).items()}
            return dataclasses.replace(outcome, statistics=moved)

        monkeypatch.setattr(Methods, "recalibrated", recalibrated)
    tried = choose(methods, lambda _: pytest.fail("nothing is counted"), total=1, largest_drop=1.0).tried
    least = min(tried[-2:], key=lambda candidate: methods.divergence(candidate.outcome))
    assert tried[-1] is least
    assert {candidate.name for candidate in tried[-2:]} == {"adaprune", "adaprune + batch norm"}
    if spoilt:
        assert tried[-1].name == "adaprune"
