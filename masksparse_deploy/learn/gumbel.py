"""Masks as draws from the admissible rows of each group: hard straight-through Gumbel-softmax, frozen weights."""

import math
from typing import Any, final

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.selector import Selector

__all__ = ["GumbelSelector", "select_row"]

# 4:8 has 70 rows, 5:10 has 252; each is a logit for every group.
_MAX_ROWS = 256
_FIRST_TEMPERATURE = 2.0
_LAST_TEMPERATURE = 0.3


@final
class GumbelSelector(Selector):
    """One logit for every admissible row of every group; training draws rows, evaluation takes the likeliest.

    Danhofer 2024, "Inducing Semi-Structured Sparsity by Masking" (arXiv 2411.00288), with groups along the input channels,
    a constant codebook, deterministic evaluation, and a temperature that falls exponentially from 2 to 0.3 over the training.
    A logit starts at the sum of the row's |w| relative to the group's mean, so that evaluation starts at magnitude masks.

    Attributes:
        logits: float32 (out_channels, in_channels / M, C(M, N), ...), the rows in the order of `NMPattern.codebook`.
        codebook: float32 (C(M, N), M), constant.
        temperature: of the softmax that the gradient is taken through.
    """

    codebook: torch.Tensor

    def __init__(self, weight: torch.Tensor, pattern: NMPattern) -> None:
        """Start at the magnitude of `weight`, float32 (out_channels, in_channels, ...), in_channels % M == 0.

        Raises:
            UsageError: the pattern has too many rows to hold a logit for each.
        """
        super().__init__(pattern)
        rows = math.comb(pattern.m, pattern.n)
        if rows > _MAX_ROWS:
            raise UsageError(
                f"method 'gumbel' learns one logit for every way to keep {pattern.n} of {pattern.m} weights, which are {rows}, "
                f"more than the {_MAX_ROWS} that it can hold; use method 'scores', which needs none, or a smaller pattern"
            )
        # A constant: not a parameter, and known from the pattern, so not part of the state either.
        self.register_buffer("codebook", torch.from_numpy(pattern.codebook()).to(weight), persistent=False)
        self.logits = nn.Parameter(_initial_logits(weight, self.codebook))
        self.temperature = _FIRST_TEMPERATURE
        self._seed = 0
        self._draw_count = 0

    def begin_step(self, progress: float, seed: int) -> None:
        """Set the temperature, and the seed that all draws until the next step come from; see `Selector.begin_step`."""
        self.temperature = _FIRST_TEMPERATURE * (_LAST_TEMPERATURE / _FIRST_TEMPERATURE) ** progress
        self._seed, self._draw_count = seed, 0

    def mask(self) -> torch.Tensor:
        """See `Selector.mask`: rows drawn anew in every call in training mode, the first of the likeliest in evaluation."""
        noise = self._gumbel_noise() if self.training else torch.zeros_like(self.logits)
        return select_row(self.logits, noise, self.codebook, self.temperature)

    def _gumbel_noise(self) -> torch.Tensor:
        """Standard Gumbel noise, -log(-log(U)) with U uniform; the same for the same seed and number of the draw."""
        seed = np.random.SeedSequence((self._seed, self._draw_count)).generate_state(1)[0]
        self._draw_count += 1
        generator = torch.Generator(self.logits.device).manual_seed(int(seed))
        uniform = torch.rand(self.logits.shape, generator=generator, device=self.logits.device)
        # A draw of zero would make infinite noise.
        return uniform.clamp_(min=torch.finfo(uniform.dtype).tiny).log_().neg_().log_().neg_()


def select_row(logits: torch.Tensor, noise: torch.Tensor, codebook: torch.Tensor, temperature: float) -> torch.Tensor:
    """The row of the highest logit + noise of every group; among equal ones the first.

    The gradient is that of softmax((logits + noise) / temperature) times the codebook, while the value is always one whole
    row: the straight-through estimator of Jang et al. 2016, "Categorical Reparameterization with Gumbel-Softmax".

    Args:
        logits: float32 (out_channels, in_channels / M, rows, ...).
        noise: the shape of `logits`.
        codebook: float32 (rows, M).
        temperature: positive.

    Returns:
        float32 (out_channels, in_channels, ...).
    """
    selected: torch.Tensor = _StraightThrough.apply(logits, noise, codebook, temperature)  # type: ignore[no-untyped-call]
    return selected


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: torch.Tensor, noise: torch.Tensor, codebook: torch.Tensor, temperature: float
    ) -> torch.Tensor:
        perturbed = logits + noise
        ctx.save_for_backward(perturbed, codebook)
        ctx.temperature = temperature
        # max is several times as fast as argmax here, and tells the first of equal ones too.
        rows = codebook[perturbed.max(2).indices].movedim(-1, 2)
        return rows.reshape(rows.shape[0], -1, *rows.shape[3:])

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        perturbed, codebook = ctx.saved_tensors
        grouped = gradient.reshape(gradient.shape[0], -1, codebook.shape[1], *gradient.shape[2:])
        of_rows = torch.einsum("ogm...,rm->ogr...", grouped, codebook)
        probabilities = torch.softmax(perturbed / ctx.temperature, 2)
        centred = of_rows - (probabilities * of_rows).sum(2, keepdim=True)
        return probabilities * centred / ctx.temperature, None, None, None


def _initial_logits(weight: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Sum of the row's |w| / mean |w| of the group; equal ones where a whole group is zero."""
    # In float64 sums of equal magnitudes are equal in whatever order they are added.
    magnitude = weight.detach().double().abs().reshape(weight.shape[0], -1, codebook.shape[1], *weight.shape[2:])
    mean = magnitude.mean(2, keepdim=True)
    of_rows = torch.einsum("ogm...,rm->ogr...", magnitude, codebook.double())
    return torch.where(mean > 0, of_rows / mean, torch.ones_like(of_rows)).to(weight.dtype).contiguous()
