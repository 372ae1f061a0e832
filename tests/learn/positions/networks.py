"""Small networks and options for the tests of masked positions."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.positions.sparsifier import PositionTraining
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.learning import TRAIN
from tests.models.tiny_cnn import tiny_cnn

OPTIONS = MaskOptions(method="positions", position_rate=0.3, epochs=3, batch_size=32, augment="shift-mirror", device="cpu")
LAYERS = ("block.conv1", "block.conv2")


class EveryKind(nn.Module):
    """A convolution of every kind that the survey tells apart; images (count, 3, height, width) of any size."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.strided = nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.pointwise = nn.Conv2d(8, 8, 1)
        self.twice = nn.Conv2d(8, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.unused = nn.Conv2d(8, 8, 3)
        self.last = nn.Conv2d(8, 8, 1)
        self.squeezed = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.strided(self.plain(self.stem(x)))
        x = self.pointwise(self.grouped(self.depthwise(x)))
        x = self.up(self.twice(self.twice(x))).mean((2, 3), keepdim=True)
        return self.fc(self.squeezed(self.last(x)).flatten(1))


class Flat(nn.Module):
    """What it answers depends on where things are; images (count, 3, 8, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.fc = nn.Linear(512, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.norm(self.conv(torch.relu(self.stem(x))))).flatten(1))


class Cropping(nn.Module):
    """The size of what its second convolution sees depends on the image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x)
        if bool(x.abs().sum() > 0):
            y = y[:, :, 1:]
        return self.fc(self.conv(y).mean((2, 3)))


def seeded(kind: type[nn.Module]) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return kind().eval().requires_grad_(False)


def flat() -> nn.Module:
    """What a factory gives."""
    return seeded(Flat)


def odd_images(count: int = 64) -> Samples:
    """Images of 7 x 9 pixels."""
    generator = np.random.default_rng(5)
    images = generator.standard_normal((count, 3, 7, 9), dtype=np.float32)
    return Samples(images, generator.integers(10, size=count))


def train(
    checkpoint: Path,
    change: Mapping[str, object] | None = None,
    *,
    model: nn.Module | None = None,
    samples: Samples = TRAIN,
    progress: Progress = silent,
) -> Outcome:
    options = OPTIONS.model_copy(update=change or {})
    sparsifier = PositionTraining(options=options, checkpoint=checkpoint, progress=progress)
    return sparsifier.sparsify(model or tiny_cnn(), (), samples)
