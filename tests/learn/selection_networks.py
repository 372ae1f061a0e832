"""A network whose layers bear masks very differently, for the tests of choosing layers."""

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.patterns import NMPattern

PATH = "tests.learn.selection_networks"
PATTERN = NMPattern(n=2, m=4)


class UnevenNet(nn.Module):
    """Stem 3 -> 8, then `free`, `mild` and `fragile`, 8 -> 8 each; no batch norm, images (count, 3, 8, 8), 10 classes.

    `free` is 2:4 already, so that a mask changes nothing; `mild` adds little to what it is given; every output of `fragile`
    is a difference of sums that nearly cancel, of which a mask keeps one only.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.free = nn.Conv2d(8, 8, 3, padding=1)
        self.mild = nn.Conv2d(8, 8, 3, padding=1)
        self.fragile = nn.Conv2d(8, 8, 1)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.stem(x))
        x = x + torch.relu(self.free(x))
        x = x + 0.05 * torch.relu(self.mild(x))
        return self.fc(torch.relu(self.fragile(x)).mean((2, 3)))


def uneven_net() -> UnevenNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = UnevenNet().eval().requires_grad_(False)
    weight = model.free.weight
    weight *= torch.from_numpy(PATTERN.keep_largest(np.abs(weight.numpy()), group_axis=1))
    # Kept are the two largest of four: both of one sign.
    model.fragile.weight *= 0.1
    model.fragile.weight += torch.tensor([3.1, 3.1, -3.0, -3.0, -3.1, -3.1, 3.0, 3.0])[:, None, None]
    model.fragile.weight[1::2] *= -1
    return model


class OtherCode(UnevenNet):
    """The same weights in a network that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(-x)


def other_code() -> OtherCode:
    return OtherCode()
