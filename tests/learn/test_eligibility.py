import itertools
import re

import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.eligibility import LayerSurvey, survey_layers
from masksparse_deploy.learn.probe import probe_model
from tests.learn.networks import KeywordNet, RepeatedNet, ShallowNet, Zoo, feature_maps
from tests.models.tiny_cnn import tiny_cnn

PATTERN = NMPattern(n=2, m=4)
SHAPE = (3, 8, 8)


def survey(
    model: nn.Module, pattern: NMPattern = PATTERN, *, pad_channels: bool = False, **choice: tuple[str, ...]
) -> LayerSurvey:
    model.eval()
    return survey_layers(model, probe_model(model, SHAPE), pattern=pattern, pad_channels=pad_channels, **choice)


def names(found: LayerSurvey) -> list[str]:
    return [layer.name for layer in found.eligible]


def test_every_layer_is_eligible_or_skipped_with_its_reason() -> None:
    found = survey(Zoo())
    assert names(found) == ["plain"]
    assert {layer.name: layer.reason for layer in found.skipped} == {
        "stem": "3 input channels, not a multiple of 4",
        "grouped": "grouped convolution (2 groups)",
        "depthwise": "depthwise convolution (8 groups)",
        "up": "a transposed convolution",
        "tied": "shares its weight with also_tied",
        "also_tied": "shares its weight with tied",
        "line": "not a 2-d convolution",
        "scaled": "its weight is computed (parametrized), not stored",
        "unused": "does not run when an image passes through the network",
        "hidden": "a linear layer: name it in mask.include to mask it",
        "head": "a linear layer: name it in mask.include to mask it",
    }


def test_a_layer_that_runs_three_times_counts_three_times() -> None:
    (once,), (thrice,) = survey(ShallowNet()).eligible, survey(RepeatedNet()).eligible
    assert (once.mac_count, thrice.mac_count) == (8 * 8 * 9 * 64, 3 * 8 * 8 * 9 * 64)


def test_inputs_may_be_handed_over_by_name() -> None:
    assert survey(KeywordNet()) == survey(ShallowNet())


def test_counts_weights_and_multiply_accumulates_of_one_image() -> None:
    found = survey(Zoo())
    macs = {layer.name: layer.mac_count for layer in (*found.eligible, *found.skipped)}
    assert macs["stem"] == 8 * 3 * 9 * 64
    assert macs["plain"] == 8 * 8 * 9 * 64
    assert macs["grouped"] == 8 * 4 * 9 * 64
    # Every input position meets every weight; the output is twice as high and wide.
    assert macs["up"] == 8 * 8 * 4 * 64
    assert macs["tied"] == 8 * 8 * 256
    assert macs["unused"] == 0
    assert macs["hidden"] == 8 * 12
    assert found.mac_count == sum(macs.values())
    assert found.convolution_count == 10
    assert found.parameter_count == sum(parameter.numel() for parameter in Zoo().parameters())


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*",), (), ["block.conv1", "block.conv2", "block.shortcut.0"]),
        (("*",), ("*.shortcut.*",), ["block.conv1", "block.conv2"]),
        (("block.conv?",), ("*2",), ["block.conv1"]),
        (("*", "fc"), (), ["block.conv1", "block.conv2", "block.shortcut.0", "fc"]),
        (("f*",), (), ["fc"]),
        (("fc", "block.conv1"), ("fc",), ["block.conv1"]),
    ],
)
def test_globs_choose_layers_and_exclude_wins(include: tuple[str, ...], exclude: tuple[str, ...], expected: list[str]) -> None:
    assert names(survey(tiny_cnn(), include=include, exclude=exclude)) == expected


def test_the_users_choice_is_a_reason() -> None:
    found = survey(tiny_cnn(), include=("block.*",), exclude=("*.conv2",))
    reasons = {layer.name: layer.reason for layer in found.skipped}
    assert reasons["block.conv2"] == "excluded by mask.exclude '*.conv2'"
    assert reasons["fc"] == "not matched by mask.include"
    assert reasons["conv"] == "3 input channels, not a multiple of 4"


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"include": ("conv",)}, "mask.include names conv, which cannot carry a 2:4 mask: 3 input channels"),
        (
            {"include": ("block.convl",)},
            "'block.convl' matches no convolution or linear layer; did you mean 'block.conv2', 'block.conv1'?",
        ),
        ({"exclude": ("block",)}, "did you mean 'block.*'?"),
        ({"exclude": ("zzz",)}, "the layers are conv, block.conv1"),
        ({"include": ("conv*",)}, "no layer of the network can carry a 2:4 mask (conv: 3 input channels"),
    ],
)
def test_a_choice_that_cannot_be_followed_is_refused(choice: dict[str, tuple[str, ...]], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        survey(tiny_cnn(), **choice)


def test_channels_are_measured_against_the_pattern() -> None:
    found = survey(tiny_cnn(), pattern=NMPattern(n=4, m=16))
    assert names(found) == ["block.conv2"]


def conv_net(*widths: int) -> nn.Sequential:
    """3x3 convolutions of the given widths after one another, and a classifier."""
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], 10))


def test_layers_that_padding_makes_eligible() -> None:
    model = conv_net(3, 6, 8, 2, 5, 4)
    plain = survey(model)
    assert names(plain) == ["2"]
    reasons = {layer.name: layer.reason for layer in plain.skipped}
    assert reasons["0"] == "3 input channels, not a multiple of 4"
    assert reasons["1"] == "6 input channels, not a multiple of 4 (set mask.pad_channels to mask it)"
    assert reasons["3"] == "2 input channels, not a multiple of 4"
    padded = survey(model, pad_channels=True)
    assert names(padded) == ["1", "2", "4"]
    reasons = {layer.name: layer.reason for layer in padded.skipped}
    assert reasons["0"] == "fewer than 4 input channels: name it in mask.include to mask it"
    assert reasons["3"] == "2 input channels, not a multiple of 4, and padding them saves nothing"


@pytest.mark.parametrize("include", [("0",), ("*", "0*")])
def test_fewer_channels_than_a_group_are_masked_where_they_are_named(include: tuple[str, ...]) -> None:
    assert "0" in names(survey(conv_net(3, 6, 8), include=include, pad_channels=True))
    with pytest.raises(UsageError, match=r"set mask\.pad_channels: true"):
        survey(conv_net(3, 6, 8), include=("0",))


@pytest.mark.parametrize(
    ("pattern", "channels", "saved"),
    [("2:4", 6, 2), ("2:4", 5, 1), ("2:4", 8, 4), ("1:4", 5, 3), ("3:4", 7, 1), ("4:8", 10, 2)],
)
def test_zeros_that_fill_a_group_are_multiplied_by(pattern: str, channels: int, saved: int) -> None:
    model = conv_net(4, channels, 8)
    found = survey_layers(
        model.eval(), probe_model(model, (4, 8, 8)), pattern=NMPattern.parse(pattern), include=("1",), pad_channels=True
    )
    # At each of 8 x 8 positions, for each of 8 output channels and 9 taps.
    assert found.eligible[0].saved_mac_count(NMPattern.parse(pattern)) == 64 * 8 * 9 * saved


def test_padding_that_saves_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="5 input channels, not a multiple of 4, and padding them saves nothing; remove it"):
        survey(conv_net(3, 5, 8), NMPattern(n=3, m=4), include=("1",), pad_channels=True)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(UsageError, match="has no convolutions or linear layers"):
        survey(nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten()))


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (tiny_cnn(), (1, 8, 8), "layer conv takes 3 channels and receives 1"),
        (nn.Sequential(nn.Flatten(), nn.Linear(192, 10)), (3, 9, 9), "layer 1 takes 192 features and receives 243"),
        (nn.Sequential(nn.Conv2d(3, 4, 9), nn.Flatten()), (3, 8, 8), "cannot take images of shape"),
        (feature_maps(), (3, 8, 8), r"returns \(1, 8, 6, 6\) for one image"),
        (nn.LSTM(8, 8), (8, 8), "returns tuple"),
    ],
)
def test_images_that_do_not_fit_the_network_are_refused(model: nn.Module, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        probe_model(model.eval(), shape)
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_probing_changes_nothing() -> None:
    model = tiny_cnn()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    probe_model(model, SHAPE)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in model.modules())


def test_transposable_masks_need_whole_tiles() -> None:
    found = survey(Zoo(), NMPattern(n=2, m=4, transposable=True), include=("*", "hid*"))
    assert names(found) == ["plain", "hidden"]
    reasons = {layer.name: layer.reason for layer in found.skipped}
    assert reasons["head"] == "10 output features, not a multiple of 4"
    assert reasons["stem"] == "3 input channels, not a multiple of 4"
    with pytest.raises(
        UsageError, match=re.escape("cannot carry a T2:4 mask: 10 output features, not a multiple of 4; remove it")
    ):
        survey(Zoo(), NMPattern(n=2, m=4, transposable=True), include=("head",))


def test_channels_are_not_padded_for_transposable_masks() -> None:
    message = (
        "mask.pad_channels fills groups of input channels, and a T2:4 mask needs whole tiles of 4 x 4 channels; remove it "
        "(layers without whole tiles stay dense), or use mask.pattern 2:4 with another method than transposable"
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        survey(Zoo(), NMPattern(n=2, m=4, transposable=True), pad_channels=True)
