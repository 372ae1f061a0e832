"""Small networks in the manner of well-known ones, with what each of them is known for, and random batch-norm statistics."""

import copy

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from masksparse_deploy.core.patterns import NMPattern

CLASSES = 5


def conv(in_channels: int, out_channels: int, kernel: int = 3, **options: int) -> nn.Sequential:
    padding = kernel // 2
    layers = (
        nn.Conv2d(in_channels, out_channels, kernel, padding=padding, bias=False, **options),
        nn.BatchNorm2d(out_channels),
    )
    return nn.Sequential(*layers)


class SqueezeExcite(nn.Module):
    def __init__(self, channels: int, gate: type[nn.Module]) -> None:
        super().__init__()
        self.reduce, self.expand, self.gate = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1), gate()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = functional.adaptive_avg_pool2d(x, 1)
        return x * self.gate(self.expand(functional.relu(self.reduce(pooled))))


class Inverted(nn.Module):
    """The block of MobileNetV3 and EfficientNet: expand, depthwise, squeeze and excite, project, add."""

    def __init__(self, channels: int, activation: type[nn.Module], gate: type[nn.Module]) -> None:
        super().__init__()
        wide = 2 * channels
        self.body = nn.Sequential(
            *(conv(channels, wide, 1), activation(), conv(wide, wide, groups=wide), activation()),
            *(SqueezeExcite(wide, gate), conv(wide, channels, 1)),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.body(x)


class Dense(nn.Module):
    """The block of DenseNet: batch norm before the activation, and everything that came before beside the new channels."""

    def __init__(self, channels: int, growth: int = 4) -> None:
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(channels), nn.Conv2d(channels, growth, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.cat([x, self.conv(functional.relu(self.norm(x)))], 1)


class Residual(nn.Module):
    def __init__(self, channels: int, activation: nn.Module) -> None:
        super().__init__()
        self.first, self.second, self.activation = conv(channels, channels), conv(channels, channels), activation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(x + self.second(self.activation(self.first(x))))


def head(channels: int) -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)


def mobile_net() -> nn.Module:
    block = Inverted(8, nn.Hardswish, nn.Hardsigmoid)
    return nn.Sequential(conv(3, 8, stride=2), nn.Hardswish(), block, *head(8))


def efficient_net() -> nn.Module:
    return nn.Sequential(conv(3, 8, stride=2), nn.SiLU(), Inverted(8, nn.SiLU, nn.Sigmoid), *head(8))


def dense_net() -> nn.Module:
    transition = (conv(16, 8, 1), nn.AvgPool2d(2, ceil_mode=True))
    stem = (conv(3, 8), nn.ReLU6(), nn.MaxPool2d(3, 2, ceil_mode=True))
    return nn.Sequential(*stem, Dense(8), Dense(12), *transition, nn.GELU(), *head(8))


def residual_net(activation: type[nn.Module] = nn.ReLU) -> nn.Module:
    return nn.Sequential(conv(3, 8), activation(), nn.MaxPool2d(2), Residual(8, activation()), *head(8))


NETWORKS = {"MobileNetV3": mobile_net, "EfficientNet": efficient_net, "DenseNet": dense_net, "ResNet": residual_net}


def with_statistics(network: nn.Module, seed: int = 0) -> nn.Module:
    """The network in evaluation mode, with batch-norm statistics and weights drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None and module.running_var is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def masked(network: nn.Module, *, strength: float = 1.0) -> nn.Module:
    """A copy with 2:4 on every convolution that can carry it; below a strength of 1 the weights only go part of the way."""
    twin = copy.deepcopy(network)
    for module in twin.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and module.in_channels % 4 == 0:
            weight = module.weight.detach().numpy()
            keep = NMPattern(n=2, m=4).keep_largest(np.abs(weight), group_axis=1)
            module.weight.data = torch.from_numpy(np.where(keep, weight, weight * np.float32(1 - strength)))
    return twin
