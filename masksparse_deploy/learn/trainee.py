"""What is common to all that is learned by gradient descent: what moves in a copy of the network, and the masks that result."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.positions import PositionMask

__all__ = ["Trainee"]


class Trainee(ABC):
    """A network in training, made ready in place; `learn.learner.Learner` takes it through its steps.

    Attributes:
        peak_learning_rate: of the one-cycle schedule, where the user names none.
    """

    peak_learning_rate: float

    @abstractmethod
    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """The parameters that the optimizer moves, by the name that a message about them gives."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer:
        """A new optimizer over these parameters; the schedule sets its learning rate."""

    @abstractmethod
    def begin_step(self, step: int, total_steps: int, seed: int) -> None:
        """Get ready for step `step` of `total_steps`, counted from 0; `seed` is of what is random in it."""

    def end_step(self, step: int, loss: torch.Tensor) -> None:
        """Step `step` is done; `loss` is its mean loss in this process, a scalar tensor on the device."""
        del step, loss

    @abstractmethod
    def masks(self) -> Mapping[str, LayerMask]:
        """The masks as they are now, by weight name."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """All that changes in training but batch-norm statistics and the optimizer: tensors and plain values."""

    @abstractmethod
    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """The parameters that are not what they were, see `MaskSet.weights`; none where training leaves them frozen."""
        return {}

    def positions(self) -> Mapping[str, PositionMask]:
        """Which output positions are computed, by layer name; none where all are."""
        return {}
