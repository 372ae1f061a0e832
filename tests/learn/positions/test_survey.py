import pytest
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.positions.survey import PositionSurvey, survey_positions
from tests.learn.networks import zoo
from tests.learn.positions.networks import OPTIONS, Cropping, EveryKind, seeded

SHAPE = (3, 7, 9)
STEM = "the first convolution, which reads the image: name it in mask.include to mask it"


def survey(kind: type[nn.Module] = EveryKind, **change: object) -> PositionSurvey:
    return survey_positions(seeded(kind), SHAPE, OPTIONS.model_copy(update=change))


def test_layers_and_reasons() -> None:
    found = survey()
    assert [(layer.name, layer.size) for layer in found.layers] == [("plain", (7, 9)), ("strided", (4, 5))]
    # 8 x 8 x 3 x 3 weights at each of 63 positions.
    assert found.layers[0].mac_count == 576 * 63
    slow = "convolution, which does not become faster by it: name it in mask.include to mask it"
    assert {layer.name: layer.reason for layer in found.skipped} == {
        "stem": STEM,
        "depthwise": f"a depthwise {slow}",
        "grouped": f"a grouped {slow}",
        "pointwise": "a 1x1 convolution: set mask.position_pointwise to mask it",
        "twice": "runs 2 times for an image",
        "up": "a transposed convolution",
        "unused": "does not run when an image passes through the network",
        "last": "mask.position_rate 0.3 of 1 x 1 positions drops none",
        "squeezed": "mask.position_rate 0.3 of 1 x 1 positions drops none",
        "fc": "a linear layer has no positions",
    }


def test_a_layer_that_a_file_does_not_tell_by_its_weight_is_left_dense() -> None:
    """They are refused in baking, and should be known before anything is trained."""
    found = survey_positions(zoo(), (3, 8, 8), OPTIONS.model_copy(update={"position_pointwise": True}))
    assert [layer.name for layer in found.layers] == ["plain"]
    reasons = {layer.name: layer.reason for layer in found.skipped}
    assert reasons["tied"] == "shares its weight with also_tied"
    assert reasons["also_tied"] == "shares its weight with tied"
    assert reasons["scaled"] == "its weight is computed (parametrized), not stored"


def test_naming_a_layer_brings_it_in() -> None:
    found = survey(include=("*", "stem", "depth*", "grouped"), position_pointwise=True)
    names = [layer.name for layer in found.layers]
    assert names == ["stem", "plain", "strided", "depthwise", "grouped", "pointwise"]


def test_exclude_wins() -> None:
    found = survey(include=("*", "stem"), exclude=("st*",))
    assert [layer.name for layer in found.layers] == ["plain"]
    assert {layer.reason for layer in found.skipped if layer.name in ("stem", "strided")} == {"excluded by mask.exclude 'st*'"}
    reasons = {layer.name: layer.reason for layer in survey(include=("plain",)).skipped}
    assert reasons["strided"] == "not matched by mask.include"


def test_all_positions_are_never_dropped() -> None:
    reasons = {layer.name: layer.reason for layer in survey(position_rate=0.6).skipped}
    assert reasons["squeezed"] == "mask.position_rate 0.6 of 1 x 1 positions drops all"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            EveryKind,
            {"include": ("twice",)},
            "mask.include names twice, which cannot leave positions out: runs 2 times for an ",
        ),
        (
            EveryKind,
            {"include": ("plane",)},
            "mask.include 'plane' matches no convolution or linear layer; did you mean 'plain'",
        ),
        (
            Cropping,
            {},
            f"no layer of the network can leave positions out (stem: {STEM}; conv: the size of its output depends on the "
            "image; fc: a linear layer has no positions)",
        ),
    ],
)
def test_refusals(kind: type[nn.Module], change: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        survey(kind, **change)
    assert str(caught.value).startswith(message)


def test_with_masks_of_weights_a_name_may_be_meant_for_these() -> None:
    found = survey_positions(
        seeded(EveryKind), SHAPE, MaskOptions(method="sparse-training", position_rate=0.3, include=("plain", "fc"))
    )
    assert [layer.name for layer in found.layers] == ["plain"]
