"""Learned masks on frozen weights: one score per weight, hard selection, straight-through gradient."""

from typing import Any, final

import torch
from torch import nn

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.selector import Selector

__all__ = ["ScoreSelector", "initial_scores", "select_largest"]


@final
class ScoreSelector(Selector):
    """One score per weight; the N highest scores of every group are chosen, in training as in evaluation.

    Any N:M up to M = 32. Scores start at |w| relative to the mean of the group, so that learning starts at magnitude masks.

    Attributes:
        scores: float32, the weight's shape.
    """

    def __init__(self, weight: torch.Tensor, pattern: NMPattern) -> None:
        """Start at the magnitude of `weight`, float32 (out_channels, in_channels, ...), in_channels % M == 0."""
        super().__init__(pattern)
        self.scores = nn.Parameter(initial_scores(weight, pattern.m))

    def mask(self) -> torch.Tensor:
        """See `Selector.mask`; among equal scores the one with the smaller index is chosen."""
        return select_largest(self.scores, self.pattern)


def initial_scores(weight: torch.Tensor, m: int) -> torch.Tensor:
    """|w| relative to the mean |w| of its group; ones where a whole group is zero. Same shape as `weight`."""
    magnitude = weight.detach().abs().reshape(weight.shape[0], -1, m, *weight.shape[2:])
    mean = magnitude.mean(2, keepdim=True)
    return torch.where(mean > 0, magnitude / mean, torch.ones_like(magnitude)).reshape(weight.shape).contiguous()


def select_largest(scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
    """1.0 for the N largest scores of every group along axis 1, else 0.0; the gradient passes straight through to all scores.

    Among equal scores the one with the smaller index is selected, as in `NMPattern.keep_largest`. The estimator is that of
    Ramanujan et al. 2020, "What's Hidden in a Randomly Weighted Neural Network?", with the selection within groups of M.

    Args:
        scores: float32 (out_channels, in_channels, ...), in_channels % M == 0.
        pattern: N:M.
    """
    selected: torch.Tensor = _StraightThrough.apply(scores, pattern)  # type: ignore[no-untyped-call]
    return selected


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
        grouped = scores.reshape(scores.shape[0], -1, pattern.m, *scores.shape[2:]).unbind(2)
        # How many scores of the group come before each one; pair by pair, as sorting short rows is slower.
        ranks = [torch.zeros_like(score, dtype=torch.int8) for score in grouped]
        for later in range(pattern.m):
            for earlier in range(later):
                earlier_wins = grouped[earlier] >= grouped[later]
                ranks[later] += earlier_wins
                ranks[earlier] += ~earlier_wins
        return (torch.stack(ranks, 2) < pattern.n).reshape(scores.shape).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
