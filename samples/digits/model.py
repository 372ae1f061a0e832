"""A small residual network for 8x8 images of handwritten digits."""

import torch
from torch import nn
from torch.nn import functional

__all__ = ["DigitsNet", "digits_net"]


class Block(nn.Module):
    """Two 3x3 convolutions with a shortcut; a 1x1 convolution on the shortcut where the shape changes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm2d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 (count, in_channels, height, width) to (count, out_channels, height / stride, width / stride)."""
        residual = self.bn2(self.conv2(functional.relu(self.bn1(self.conv1(x)))))
        return functional.relu(residual + self.shortcut(x))


class DigitsNet(nn.Module):
    """Stem, four residual blocks (16, 32, 64, 64 channels), global average pooling, linear classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(Block(16, 16, 1), Block(16, 32, 1), Block(32, 64, 2), Block(64, 64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Float32 images (count, 1, 8, 8) to float32 logits (count, 10)."""
        x = self.blocks(functional.relu(self.bn(self.stem(x))))
        return self.classifier(x.mean(dim=(2, 3)))


def digits_net() -> DigitsNet:
    """The untrained network."""
    return DigitsNet()
