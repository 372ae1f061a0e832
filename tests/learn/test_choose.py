from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.masks import AxisPermutation, LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import silent
from masksparse_deploy.learn.choose import Candidate, Choice, choose
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.methods import Methods
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.networks import labelled_by_network, shallow_net
from tests.models.tiny_cnn import tiny_cnn

PATTERN = NMPattern(n=2, m=4)
TOTAL = 1000
NAME = "block.shortcut.0.weight"
LEARNED = LayerMask(
    weight_name=NAME, keep=np.tile([True, True, False, False], (16, 2))[..., None, None], group_axis=1, pattern=PATTERN
)
TRANSPOSABLE = NMPattern(n=2, m=4, transposable=True)
ORDER = AxisPermutation(name="fc.weight", axis=0, order=np.array([1, 0]))


class _Learned:
    """Stands for minutes of learning."""

    def sparsify(self, *arguments: Any) -> Outcome:
        return Outcome(masks={NAME: LEARNED})


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No learning, no search: what is tested is the choice between results."""
    monkeypatch.setattr(Methods, "learned", lambda self, method: _Learned())
    monkeypatch.setattr(Methods, "permutations", (ORDER,))
    monkeypatch.setattr("masksparse_deploy.learn.permuted.permute", lambda model, permutations: model)


def decide(
    counts: Mapping[str, int],
    *,
    largest_drop: float = 1.0,
    network: Any = tiny_cnn,
    may_decide: bool = True,
    pattern: NMPattern = PATTERN,
    **options: Any,
) -> Choice:
    """The choice when masks of that name classify so many of 1000 images correctly; other names must not be asked for."""
    model, train = network(), labelled_by_network(64, 1)
    survey = survey_layers(model, probe_model(model, train.images.shape[1:]), pattern=pattern)
    methods = Methods(
        model=model,
        layers=survey.eligible,
        train=train,
        options=MaskOptions(calibration_count=32, batch_size=16, **options),
        pattern=pattern,
        may_decide=may_decide,
        device=torch.device("cpu"),
        out=Path(),
        progress=silent,
    )
    return choose(
        methods,
        lambda candidate: counts["dense" if candidate is None else candidate.name],
        total=TOTAL,
        largest_drop=largest_drop,
    )


def names(tried: tuple[Candidate, ...]) -> list[str]:
    return [candidate.name for candidate in tried]


@pytest.mark.usefixtures("quick")
class TestRecipe:
    def test_it_stops_at_the_first_stage_that_passes(self) -> None:
        choice = decide({"dense": 900, "magnitude": 890}, method="auto")
        assert names(choice.tried) == ["magnitude"]
        assert [(stage.name, stage.correct, stage.kept, stage.passed) for stage in choice.recipe] == [
            ("dense", 900, True, True),
            ("magnitude", 890, True, True),
        ]

    def test_one_image_less_does_not_pass(self) -> None:
        counts = {"dense": 900, "magnitude": 889, "magnitude + permutation": 890}
        choice = decide(counts, method="auto")
        assert names(choice.tried) == ["magnitude", "magnitude + permutation"]
        assert [stage.passed for stage in choice.recipe] == [True, False, True]
        assert choice.tried[-1].outcome.permutations == (ORDER,)

    def test_stages_build_on_one_another(self) -> None:
        counts = {
            "dense": 900,
            "magnitude": 700,
            "magnitude + permutation": 750,
            "magnitude + permutation + batch norm": 800,
            "scores + permutation": 895,
            "scores + permutation + batch norm": 890,
        }
        choice = decide(counts, method="auto")
        assert names(choice.tried) == list(counts)[1:5]
        assert [stage.name for stage in choice.recipe] == ["dense", "magnitude", "permutation", "batch norm", "scores"]
        assert all(stage.kept for stage in choice.recipe)
        assert choice.tried[-1].outcome.masks == {NAME: LEARNED}
        assert choice.tried[2].outcome.statistics

    def test_a_stage_that_hurts_is_dropped(self) -> None:
        counts = {"dense": 900, "magnitude": 700, "magnitude + permutation": 699, "magnitude + batch norm": 800, "scores": 895}
        counts |= {"scores + batch norm": 890, "magnitude + permutation + batch norm": 800}
        choice = decide(counts, method="auto")
        assert [(stage.name, stage.kept) for stage in choice.recipe][2] == ("permutation", False)
        assert names(choice.tried)[-1] == "scores"
        assert choice.tried[-1].outcome.permutations == ()

    def test_a_new_order_gets_a_second_trial_with_new_statistics(self) -> None:
        counts = {"dense": 900, "magnitude": 700, "magnitude + permutation": 600, "magnitude + batch norm": 800}
        counts |= {
            "magnitude + permutation + batch norm": 801,
            "scores + permutation": 895,
            "scores + permutation + batch norm": 0,
        }
        choice = decide(counts, method="auto")
        assert [stage.kept for stage in choice.recipe] == [True, True, False, True, True]
        assert [stage.note for stage in choice.recipe] == ["", "", "", "in the new order of channels, after all", ""]
        assert names(choice.tried)[2:] == ["magnitude + permutation + batch norm", "scores + permutation"]

    def test_a_stage_that_changes_nothing_is_kept(self) -> None:
        counts = {"dense": 900, "magnitude": 700, "magnitude + permutation": 700, "magnitude + permutation + batch norm": 895}
        choice = decide(counts, method="auto")
        assert [stage.kept for stage in choice.recipe] == [True, True, True, True]
        assert names(choice.tried)[-1] == "magnitude + permutation + batch norm"

    def test_where_nothing_passes_the_best_is_kept(self) -> None:
        counts = {
            "dense": 900,
            "magnitude": 700,
            "magnitude + permutation": 750,
            "magnitude + permutation + batch norm": 800,
            "scores + permutation": 600,
            "scores + permutation + batch norm": 610,
        }
        choice = decide(counts, method="auto")
        assert names(choice.tried)[-1] == "magnitude + permutation + batch norm"
        assert not any(stage.passed for stage in choice.recipe[1:])

    def test_a_network_without_batch_norm_skips_that_stage(self) -> None:
        counts = {"dense": 900, "magnitude": 700, "magnitude + permutation": 750, "scores + permutation": 895}
        choice = decide(counts, method="auto", network=shallow_net)
        assert names(choice.tried) == list(counts)[1:]
        assert (choice.recipe[3].name, choice.recipe[3].correct) == ("batch norm", None)
        assert choice.recipe[3].note == "the network has no batch norm"

    def test_statistics_that_must_stay_are_not_estimated_again(self) -> None:
        counts = {"dense": 900, "magnitude": 700, "magnitude + permutation": 750, "scores + permutation": 895}
        assert names(decide(counts, method="auto", batch_norm=False).tried) == list(counts)[1:]


@pytest.mark.usefixtures("quick")
class TestMethods:
    def test_recalibration_is_kept_only_if_it_helps(self) -> None:
        for better, last in ((801, "scores + batch norm"), (800, "scores"), (799, "scores")):
            choice = decide({"scores": 800, "scores + batch norm": better}, method="scores")
            assert names(choice.tried)[:2] == ["magnitude", "magnitude + batch norm"]
            assert names(choice.tried)[-1] == last
            assert choice.recipe == ()

    def test_recalibration_can_be_demanded_and_forbidden(self) -> None:
        # Nothing is counted: there is nothing to decide.
        for recalibrate, last in ((True, "gumbel + batch norm"), (False, "gumbel")):
            assert names(decide({}, method="gumbel", recalibrate=recalibrate).tried)[-1] == last

    def test_the_test_images_do_not_decide_between_statistics(self) -> None:
        assert names(decide({}, method="scores", may_decide=False).tried)[-1] == "scores"
        # Those of random masks are estimated again in any case.
        assert names(decide({}, method="gumbel", may_decide=False).tried)[-1] == "gumbel + batch norm"

    def test_statistics_that_must_stay_are_not_recalibrated(self) -> None:
        assert names(decide({}, method="scores", batch_norm=False).tried)[-1] == "scores"

    def test_permutation_comes_before_the_method(self) -> None:
        choice = decide({}, method="scores", permute=True, recalibrate=False)
        assert names(choice.tried) == [
            "magnitude",
            "magnitude + permutation",
            "magnitude + permutation + batch norm",
            "scores + permutation",
        ]
        assert [bool(candidate.outcome.permutations) for candidate in choice.tried] == [False, True, True, True]

    def test_where_no_order_keeps_more_no_name_speaks_of_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Methods, "permutations", ())
        choice = decide({}, method="scores", permute=True, recalibrate=False)
        assert names(choice.tried) == ["magnitude", "magnitude + batch norm", "scores"]

    @pytest.mark.parametrize("method", ["transposable", "magnitude"])
    def test_transposable_masks_stand_beside_those_that_are_free_in_the_columns(self, method: str) -> None:
        choice = decide({}, method=method, pattern=TRANSPOSABLE)
        assert names(choice.tried) == ["magnitude", "transposable", "transposable + batch norm"]
        patterns = [{str(mask.pattern) for mask in candidate.outcome.masks.values()} for candidate in choice.tried]
        assert patterns == [{"2:4"}, {"T2:4"}, {"T2:4"}]
        choice = decide({}, method=method, pattern=TRANSPOSABLE, batch_norm=False)
        assert names(choice.tried) == ["transposable + batch norm", "magnitude", "transposable"]

    @pytest.mark.parametrize(
        ("divergence_of_new", "last"), [(0.1, "adaprune + batch norm"), (0.3, "adaprune"), (0.2, "adaprune")]
    )
    def test_statistics_of_fitted_weights_are_those_that_answer_like_the_dense_network(
        self, monkeypatch: pytest.MonkeyPatch, divergence_of_new: float, last: str
    ) -> None:
        monkeypatch.setattr(Methods, "adaprune", lambda self: _Learned())
        monkeypatch.setattr(Methods, "sparse_training", lambda self: _Learned())
        monkeypatch.setattr(Methods, "divergence", lambda self, outcome: divergence_of_new if outcome.statistics else 0.2)
        tried = names(decide({}, method="adaprune", may_decide=False).tried)
        assert set(tried[-2:]) == {"adaprune", "adaprune + batch norm"}
        assert tried[-1] == last
        # Those of sparse training were learned along.
        assert names(decide({}, method="sparse-training", may_decide=False).tried)[-1] == "sparse-training"
        counts = {"adaprune": 800, "adaprune + batch norm": 799}
        assert names(decide(counts, method="adaprune").tried)[-1] == "adaprune"

    def test_transposable_masks_are_found_in_a_new_order_of_channels(self) -> None:
        choice = decide({}, method="transposable", pattern=TRANSPOSABLE, permute=True)
        assert names(choice.tried) == [
            "magnitude",
            "transposable",
            "transposable + permutation",
            "transposable + permutation + batch norm",
        ]


def test_an_order_that_transposable_masks_keep_less_in_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    def order(*channels: int) -> tuple[AxisPermutation, ...]:
        places = np.array(channels)
        return (
            AxisPermutation(name="conv1.weight", axis=0, order=places),
            AxisPermutation(name="conv1.bias", axis=0, order=places),
            AxisPermutation(name="conv2.weight", axis=1, order=places),
        )

    model = shallow_net()
    with torch.no_grad():
        # What is large is kept in either order. In the one below it fills tiles of its own, and the others are free to keep the
        # largest of the small; in the order given it leaves each tile one way to keep the rest.
        model.conv2.weight.mul_(0.01)
        for outputs, channels in (((0, 1, 4, 5), (0, 1)), ((2, 3, 6, 7), (4, 5))):
            for row in outputs:
                model.conv2.weight[row, list(channels)] = 1.0

    def keeps(*channels: int) -> bool:
        found = order(*channels)
        monkeypatch.setattr("masksparse_deploy.learn.methods.find_permutations", lambda *arguments, **options: found)
        choice = decide({}, method="transposable", pattern=TRANSPOSABLE, permute=True, network=lambda: model)
        return names(choice.tried)[-1] == "transposable + permutation"

    assert keeps(0, 1, 4, 5, 2, 3, 6, 7)
    with torch.no_grad():
        model.conv2.weight.copy_(model.conv2.weight[:, [0, 1, 4, 5, 2, 3, 6, 7]])
    # Back again is worse.
    assert not keeps(0, 1, 4, 5, 2, 3, 6, 7)
