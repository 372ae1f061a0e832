"""A residual CNN of a few thousand weights, and magnitude masks for it. Input (batch, 3, 8, 8), output (batch, 10)."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.masks import LayerMask, MaskSet, fingerprint
from tests.models.blocks import magnitude_keep

EXAMPLE_SHAPE = (3, 8, 8)
MASKED_LAYERS = ("block.conv1", "block.conv2")


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions, the first with stride 2, and a 1x1 shortcut."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=2, bias=False),
            nn.BatchNorm2d(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class TinyCnn(nn.Module):
    """stem 3 -> 8, one residual block 8 -> 16, global average pooling, linear 16 -> 10."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.block = ResidualBlock(8, 16)
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.block(torch.relu(self.bn(self.conv(x))))
        return self.fc(y.mean((2, 3)))


def tiny_cnn(seed: int = 0) -> TinyCnn:
    """The network in eval mode; batch norm has statistics and factors far from the identity, some factors negative."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = TinyCnn()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, -0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
    return model.eval()


def example_images(count: int = 4, seed: int = 0) -> npt.NDArray[np.float32]:
    """Standard normal images, float32 (count, 3, 8, 8)."""
    return np.random.default_rng(seed).standard_normal((count, *EXAMPLE_SHAPE), dtype=np.float32)


def float_state(model: nn.Module) -> dict[str, npt.NDArray[np.float32]]:
    """The floating-point parameters and buffers by name."""
    return {name: value.detach().numpy() for name, value in model.state_dict().items() if value.is_floating_point()}


def magnitude_masks(
    model: nn.Module, layers: Iterable[str] = MASKED_LAYERS, *, pattern: str = "2:4", new_statistics: bool = False
) -> MaskSet:
    """Magnitude masks of a pattern, N:M or 1xN; `new_statistics` shifts every batch-norm statistic as re-estimation would."""
    state = float_state(model)
    chosen = tuple(layers)
    parsed = parse_pattern(pattern)
    masks = {}
    for layer in chosen:
        name = f"{layer}.weight"
        keep = magnitude_keep(state[name], parsed)
        masks[name] = LayerMask(weight_name=name, keep=keep, group_axis=1, pattern=parsed)
    skipped = tuple(
        SkippedLayer(
            name=name,
            reason="3 input channels: not a multiple of 4" if name == "conv" else "excluded by the configuration",
            weight_count=module.weight.numel(),
            mac_count=0,
        )
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and name not in chosen
    )
    statistics = {
        name: value * np.float32(1.25) for name, value in state.items() if name.endswith(("running_mean", "running_var"))
    }
    return MaskSet(
        layers=masks,
        source_sha256=fingerprint(state),
        method="magnitude",
        skipped=skipped,
        statistics=statistics if new_statistics else {},
    )
