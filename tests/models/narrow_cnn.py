"""A CNN whose layers have 3, 6 and 10 input channels, no multiples of four. Input (batch, 3, 8, 8), output (batch, 10)."""

import torch
from torch import nn

MASKED_LAYERS = ("conv1", "conv2")


class NarrowCnn(nn.Module):
    """stem 3 -> 6, conv1 6 -> 10 with stride 2, conv2 10 -> 10 around which a shortcut leads, pooling, linear 10 -> 10.

    The zeros that fill the groups of conv1 can come from the stem. What conv2 reads is also added to its output, which the
    classifier averages: its zeros have to be appended.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 10, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(10)
        self.conv2 = nn.Conv2d(10, 10, 3, padding=1)
        self.fc = nn.Linear(10, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.bn(self.stem(x)))
        x = torch.relu(self.bn1(self.conv1(x)))
        return self.fc(torch.relu(self.conv2(x) + x).mean((2, 3)))


def narrow_cnn(seed: int = 0) -> NarrowCnn:
    """The network in eval mode; batch norm has statistics and factors far from the identity."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = NarrowCnn()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.5, 0.5)
        # Classes far apart, so that images get different ones.
        nn.init.normal_(model.fc.weight, std=2.0)
    return model.eval()
