"""Learning masks where the input channels are no multiple of M: the last group is one of its own size."""

from collections.abc import Callable
from typing import final

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.selector import Selector

__all__ = ["PartialSelector"]


@final
class PartialSelector(Selector):
    """Two selectors side by side: N:M for the full groups, min(N, R):R for the last one, which has R channels.

    That is what the masked layer keeps once zeros fill its last group up to M.

    Attributes:
        parts: the selectors, in the order of the channels; only the second where there are fewer than M channels.
    """

    def __init__(self, kind: Callable[[torch.Tensor, NMPattern], Selector], weight: torch.Tensor, pattern: NMPattern) -> None:
        """Let `kind` choose in `weight`, float32 (out_channels, in_channels, ...), in_channels % M > 0."""
        super().__init__(pattern)
        full, rest = weight.shape[1] - weight.shape[1] % pattern.m, weight.shape[1] % pattern.m
        patterns = pattern, NMPattern(n=min(pattern.n, rest), m=rest)
        parts = zip(torch.split(weight, [full, rest], 1), patterns, strict=True)
        self.parts = nn.ModuleList(kind(part, of_part) for part, of_part in parts if part.shape[1])

    def mask(self) -> torch.Tensor:
        """See `Selector.mask`."""
        return torch.cat([part.mask() for part in self._selectors()], 1)

    def begin_step(self, progress: float, seed: int) -> None:
        """See `Selector.begin_step`; each part draws from a seed of its own."""
        children = np.random.SeedSequence(seed).spawn(len(self.parts))
        for part, child in zip(self._selectors(), children, strict=True):
            part.begin_step(progress, int(child.generate_state(1)[0]))

    def _selectors(self) -> list[Selector]:
        return [part for part in self.parts if isinstance(part, Selector)]
