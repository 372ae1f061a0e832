"""Small networks for the tests of learning, and factories for the faults a user's module can have."""

from collections import OrderedDict

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.samples import Samples
from tests.models.tiny_cnn import example_images, tiny_cnn

PATH = "tests.learn.networks"


class Zoo(nn.Module):
    """One layer of every kind that the survey tells apart; images (1, 3, 8, 8), 10 classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.plain = nn.Conv2d(8, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(8, 8, 2, stride=2)
        self.tied = nn.Conv2d(8, 8, 1)
        self.also_tied = nn.Conv2d(8, 8, 1)
        self.also_tied.weight = self.tied.weight
        self.line = nn.Conv1d(8, 8, 1)
        self.scaled = nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 8, 1))
        self.unused = nn.Conv2d(8, 8, 1)
        self.hidden = nn.Linear(8, 12)
        self.head = nn.Linear(12, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.plain(self.stem(x))
        x = self.up(self.depthwise(self.grouped(x)))
        x = self.scaled(self.also_tied(self.tied(x)))
        return self.head(self.hidden(self.line(x.flatten(2)).mean(2)))


def zoo() -> Zoo:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Zoo().eval()


class ShallowNet(nn.Module):
    """Without batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.relu(self.conv2(torch.relu(self.conv1(x)))).mean((2, 3)))


def shallow_net() -> ShallowNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ShallowNet().eval()


class RootNet(ShallowNet):
    """Finite answers, and gradients that are not: the slope of the square root at zero is infinite."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv2(torch.relu(self.conv1(x)))
        return self.fc((x + torch.sqrt((0 * x) ** 2)).mean((2, 3)))


class KeywordNet(ShallowNet):
    """Hands the images over by name."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(input=torch.relu(self.conv2(input=torch.relu(self.conv1(input=x)))).mean((2, 3)))


class RepeatedNet(ShallowNet):
    """Calls one convolution three times."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.conv2(self.conv2(self.conv2(self.conv1(x)))).mean((2, 3)))


def nested_net() -> nn.Module:
    return nn.Sequential(OrderedDict(module=shallow_net()))


def not_a_module() -> str:
    return "network"


def raises() -> nn.Module:
    raise RuntimeError("no such variant")


def feature_maps() -> nn.Module:
    """Returns images instead of classes."""
    return nn.Conv2d(3, 8, 3)


def labelled_by_network(count: int, seed: int) -> Samples:
    """Random images with the classes that the tiny network gives them."""
    images = example_images(count, seed=seed)
    with torch.inference_mode():
        labels = tiny_cnn()(torch.from_numpy(images)).argmax(1).numpy()
    return Samples(images, labels.astype(np.int64))
