import re

import pytest
import torch
from torch import nn

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.eligibility import LayerSurvey, obstacles, survey_layers
from masksparse_deploy.learn.probe import probe_model
from tests.learn.networks import Zoo
from tests.models.cifar_resnet import wide_resnet8
from tests.models.tiny_cnn import tiny_cnn


class Bottleneck(nn.Module):
    """A stem, and 1x1 - 3x3 - 1x1 beside a strided 1x1 shortcut, as in ResNet-50; or a shortcut beside a 3x3, as in 18."""

    def __init__(self, *, basic: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Identity() if basic else nn.Conv2d(8, 8, 1)
        self.middle = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.expand = nn.Identity() if basic else nn.Conv2d(8, 8, 1)
        self.downsample = nn.Conv2d(8, 8, 1, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return (self.expand(self.middle(self.reduce(x))) + self.downsample(x)).mean((2, 3))


def survey(model: nn.Module, text: str, *, size: int = 8, **choice: tuple[str, ...]) -> LayerSurvey:
    model.eval()
    return survey_layers(model, probe_model(model, (3, size, size)), pattern=BlockPattern.parse(text), **choice)


def names(found: LayerSurvey) -> list[str]:
    return [layer.name for layer in found.eligible]


def reasons(found: LayerSurvey) -> dict[str, str]:
    return {layer.name: layer.reason for layer in found.skipped}


def test_every_layer_is_eligible_or_skipped_with_its_reason() -> None:
    found = survey(Zoo(), "1x4@0.5")
    assert names(found) == ["plain"]
    assert reasons(found) == {
        "stem": "the first convolution: name it in mask.include to mask it",
        "grouped": "grouped convolution (2 groups)",
        "depthwise": "depthwise convolution (8 groups)",
        "up": "a transposed convolution",
        "tied": "shares its weight with also_tied",
        "also_tied": "shares its weight with tied",
        "line": "not a 2-d convolution",
        "scaled": "its weight is computed (parametrized), not stored",
        "unused": "does not run when an image passes through the network",
        "hidden": "a linear layer: name it in mask.include to mask it",
        "head": "10 output features, not a multiple of 4",
    }


def test_the_share_and_its_rounding_must_leave_something_pruned() -> None:
    found = reasons(survey(wide_resnet8(), "1x32@0.12/16", size=32))
    # Of 64 input channels 7 are pruned, and 57 are rounded to 64; of 128 they leave 113, and 112.
    assert found["layer2.0.conv2"] == "64 input channels, of which all are kept when rounded to a multiple of 16"
    assert "layer3.0.conv2" not in found
    found = reasons(survey(wide_resnet8(), "1x32@0.02", size=32))
    assert found["layer1.0.conv1"] == "32 input channels, of which a share of 0.02 is none"
    assert "layer2.0.conv2" not in found


def test_blocks_that_do_not_fill_the_layer() -> None:
    found = survey(wide_resnet8(), "1x64@0.5", size=32)
    assert reasons(found)["layer1.0.conv1"] == "32 output channels, not a multiple of 64"
    assert names(found) == [f"layer{stage}.0.conv{place}" for stage in (2, 3) for place in (1, 2)]


def test_a_network_that_no_block_fits_is_refused_with_all_reasons() -> None:
    message = (
        "no layer of the network can carry a 1x32@0.5 mask (conv: 8 output channels, not a multiple of 32; block.conv1: 16 "
        "output channels, not a multiple of 32; "
    )
    with pytest.raises(UsageError, match=re.escape(message)):
        survey(tiny_cnn(), "1x32@0.5")


def test_a_layer_that_is_named_and_cannot_is_refused() -> None:
    message = "mask.include names block.conv1, which cannot carry a 1x32@0.5 mask: 16 output channels, not a multiple of 32"
    with pytest.raises(UsageError, match=re.escape(message)):
        survey(tiny_cnn(), "1x32@0.5", include=("block.conv1",))


def test_what_is_left_dense_by_default_may_be_named() -> None:
    found = survey(tiny_cnn(), "1x8@0.5")
    assert names(found) == ["block.conv1", "block.conv2"]
    assert reasons(found)["block.shortcut.0"] == (
        "a strided 1x1 convolution, as on a shortcut: name it in mask.include to mask it"
    )
    named = survey(tiny_cnn(), "1x2@0.5", include=("*", "conv", "fc", "block.short*"))
    assert names(named) == ["conv", "block.conv1", "block.conv2", "block.shortcut.0", "fc"]


def test_shortcuts_of_bottlenecks_are_pruned_and_those_of_basic_blocks_are_not() -> None:
    assert names(survey(Bottleneck(basic=False), "1x8@0.5")) == ["reduce", "middle", "expand", "downsample"]
    assert names(survey(Bottleneck(basic=True), "1x8@0.5")) == ["middle"]


def test_obstacles_are_those_of_the_layer_alone() -> None:
    model = tiny_cnn()
    found = obstacles(model, probe_model(model, (3, 8, 8)), pattern=BlockPattern.parse("1x8@0.5"))
    assert found == {"fc": "10 output features, not a multiple of 8"}


def test_what_blocks_leave_out() -> None:
    (first, second) = survey(tiny_cnn(), "1x8@0.5").eligible
    # Half of 8, and of 16, input channels.
    assert first.saved_mac_count(BlockPattern.parse("1x8@0.5")) == first.mac_count // 2
    assert second.saved_mac_count(BlockPattern.parse("1x8@0.7")) == second.mac_count * 11 // 16
    # 11 of 32 blocks of the layer as a whole.
    assert second.saved_mac_count(BlockPattern.parse("1x8~0.36")) == second.mac_count * 11 // 32
