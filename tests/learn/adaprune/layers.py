"""Layers in every form that has patches, for the tests of what is fitted to them."""

import torch
from torch import nn


def _forms() -> dict[str, tuple[nn.Conv2d | nn.Linear, tuple[int, ...]]]:
    """Layers and the shapes of their inputs."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return {
            "plain": (nn.Conv2d(8, 6, 3, bias=False), (2, 8, 5, 7)),
            "bias": (nn.Conv2d(8, 6, 3, padding=1), (2, 8, 5, 7)),
            "strided": (nn.Conv2d(8, 6, 3, stride=(2, 1), padding=(1, 0)), (2, 8, 7, 5)),
            "dilated": (nn.Conv2d(8, 6, (3, 2), dilation=(1, 2), padding=2), (2, 8, 5, 7)),
            "same": (nn.Conv2d(8, 6, (4, 2), padding="same"), (2, 8, 5, 7)),
            "reflected": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="reflect"), (2, 8, 5, 7)),
            "circular": (nn.Conv2d(8, 6, 3, padding=(0, 1), padding_mode="circular"), (2, 8, 5, 7)),
            "replicated": (nn.Conv2d(8, 6, 3, padding=1, padding_mode="replicate"), (2, 8, 5, 7)),
            "1 x 1": (nn.Conv2d(8, 6, 1, stride=2), (2, 8, 5, 7)),
            "one image": (nn.Conv2d(8, 6, 3), (8, 5, 7)),
            "linear": (nn.Linear(8, 6), (4, 8)),
            "linear, tokens": (nn.Linear(8, 6), (2, 3, 8)),
            "linear, one": (nn.Linear(8, 6), (8,)),
        }


FORMS = _forms()


class Standardized(nn.Conv2d):
    """Convolves with another weight than the one it stores."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # Means of random weights may be next to nothing; their deviation is far from 1.
        return self._conv_forward(x, (self.weight - self.weight.mean()) / self.weight.std(), self.bias)
