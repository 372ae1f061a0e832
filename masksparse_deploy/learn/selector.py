"""What every way to learn masks has in common: it chooses N of every M weights, as a parametrization of the weight."""

from abc import ABC, abstractmethod

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.patterns import NMPattern

__all__ = ["Selector"]


class Selector(nn.Module, ABC):
    """Chooses N of every M weights along axis 1, the input channels. Subclasses are final.

    Made for `torch.nn.utils.parametrize`: the layer computes with the chosen weights and zeros, its own weight stays.

    Attributes:
        pattern: N:M.
    """

    def __init__(self, pattern: NMPattern) -> None:
        super().__init__()
        self.pattern = pattern

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight with zeros where it is not chosen; same shape and dtype."""
        return weight * self.mask().to(weight.dtype)

    @abstractmethod
    def mask(self) -> torch.Tensor:
        """1.0 for exactly N of every M weights, else 0.0, in the weight's shape, with a gradient to the own parameters.

        A last group that is not full counts as one of its own size, see `NMPattern`.

        It may be random in training mode; in evaluation mode it is the same in every call.
        """

    @torch.no_grad()
    def harden(self) -> npt.NDArray[np.bool_]:
        """What evaluation mode computes with, whatever the mode: bool, the weight's shape, exactly N of every M True."""
        training = self.training
        try:
            return self.eval().mask().bool().cpu().numpy()
        finally:
            self.train(training)

    def begin_step(self, progress: float, seed: int) -> None:
        """Get ready for a training step.

        Args:
            progress: how much of the training is done, from 0 to 1.
            seed: of the random numbers of this step.
        """
