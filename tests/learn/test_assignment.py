from pathlib import Path

import pytest

from masksparse_deploy.core.artifacts.learning import Share
from masksparse_deploy.core.artifacts.selection import Assigned, LayerSelection, Measured
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.assignment import apply_assignment, survey_assigned
from masksparse_deploy.learn.eligibility import LayerSurvey, survey_layers
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from tests.learn.networks import shallow_net
from tests.learn.selection_networks import uneven_net

NAME = "selection.json"
MASK = MaskOptions(assignment=NAME)


def make_selection(*chosen: str, **changes: str) -> LayerSelection:
    """As made for the uneven network."""
    nothing = Measured(correct=9, drop_points=10.0, divergence=0.1, statistics_updated=False)
    names = ("stem", "free", "mild", "fragile", "fc")
    return LayerSelection(
        source_sha256=state_fingerprint(uneven_net()),
        pattern="2:4",
        method="magnitude",
        budget_points=1.0,
        targets=None,
        decided_on="test",
        data_sha256="0" * 64,
        dense_correct=10,
        total=10,
        layers=(),
        steps=(),
        joint=nothing,
        assignment={name: Assigned(pattern="2:4" if name in chosen else "dense", reason=f"why {name}") for name in names},
        macs=Share(masked=1, total=2),
        amdahl_limit=1.5,
        seed=0,
    ).model_copy(update=changes)


def survey(folder: Path, selection: LayerSelection, options: MaskOptions = MASK) -> LayerSurvey:
    selection.write(folder / NAME)
    model = uneven_net()
    return survey_assigned(model, probe_model(model, (3, 8, 8)), options, folder=folder)


def names(found: LayerSurvey) -> list[str]:
    return [layer.name for layer in found.eligible]


def test_only_the_chosen_layers_are_masked(tmp_path: Path) -> None:
    found = survey(tmp_path, make_selection("free", "mild"))
    assert names(found) == ["free", "mild"]
    assert {layer.name: layer.reason for layer in found.skipped} == {
        "stem": "3 input channels, not a multiple of 4",
        "fc": "a linear layer: name it in mask.include to mask it",
        "fragile": "not chosen in selection.json (why fragile)",
    }
    without = MASK.model_copy(update={"assignment": None})
    everything = survey(tmp_path, make_selection("free"), without)
    assert names(everything) == ["free", "mild", "fragile"]
    assert (found.mac_count, found.parameter_count) == (everything.mac_count, everything.parameter_count)
    skipped = next(layer for layer in found.skipped if layer.name == "fragile")
    assert (skipped.weight_count, skipped.mac_count) == (64, 64 * 64)


def test_a_chosen_linear_layer_need_not_be_named_again(tmp_path: Path) -> None:
    assert names(survey(tmp_path, make_selection("free", "fc"))) == ["free", "fc"]


def test_exclude_wins_over_the_assignment(tmp_path: Path) -> None:
    options = MASK.model_copy(update={"exclude": ("free", "fc")})
    assert names(survey(tmp_path, make_selection("free", "mild", "fc"), options)) == ["mild"]


def test_include_beside_an_assignment_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"mask.include and mask.assignment both say .* remove mask.include"):
        survey(tmp_path, make_selection("free"), MASK.model_copy(update={"include": ("free",)}))


def test_an_assignment_for_other_weights_is_refused_with_both_digests(tmp_path: Path) -> None:
    other, own = state_fingerprint(shallow_net()), state_fingerprint(uneven_net())
    with pytest.raises(ArtifactError, match=rf"made for other weights \(SHA-256 {other}\) than the checkpoint's \({own}\)"):
        survey(tmp_path, make_selection("free", source_sha256=other))


def test_an_assignment_for_another_pattern_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"made for the pattern 1:4, mask.pattern is 2:4; .* --pattern 2:4"):
        survey(tmp_path, make_selection("free", pattern="1:4"))


def test_an_assignment_without_layers_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"selection.json leaves every layer dense .* larger --points"):
        survey(tmp_path, make_selection())


def test_a_missing_or_damaged_assignment(tmp_path: Path) -> None:
    model = uneven_net()
    probe = probe_model(model, (3, 8, 8))
    with pytest.raises(UsageError, match=r"layer selection .* does not exist"):
        survey_assigned(model, probe, MASK, folder=tmp_path)
    (tmp_path / NAME).write_text("{}")
    with pytest.raises(ArtifactError, match="not a masksparse layer selection"):
        survey_assigned(model, probe, MASK, folder=tmp_path)


def test_an_assignment_that_does_not_know_a_layer_is_refused() -> None:
    model = shallow_net()
    found = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=NMPattern(n=2, m=4))
    with pytest.raises(ArtifactError, match="does not know the layer conv2"):
        apply_assignment(found, make_selection("free"))


@pytest.mark.parametrize(
    ("name", "pattern", "words"),
    [
        ("frea", "2:4", "assigns a pattern to frea, which is no layer of the network; remove it"),
        ("mild", "1:4", "assigns 1:4 to mild; a mask set has one pattern, so it must be 2:4 or dense"),
        (
            "stem",
            "2:4",
            "assigns 2:4 to stem, which cannot carry such a mask: 3 input channels, not a multiple of 4; assign dense",
        ),
    ],
)
def test_an_edited_assignment_that_cannot_be_is_refused(tmp_path: Path, name: str, pattern: str, words: str) -> None:
    selection = make_selection("free")
    edited = {**selection.assignment, name: Assigned(pattern=pattern, reason="by hand")}
    with pytest.raises(UsageError, match=words):
        survey(tmp_path, selection.model_copy(update={"assignment": edited}))
