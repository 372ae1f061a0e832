"""What every way to choose masks has in common: weights and data go in, masks come out, and new weights if it changes any."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

import numpy as np
import numpy.typing as npt
from torch import nn

from masksparse_deploy.core.artifacts.learning import TrainingPoint
from masksparse_deploy.core.masks import AxisPermutation, LayerMask
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import EligibleLayer

__all__ = ["Given", "Outcome", "Sparsifier"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Outcome:
    """What a sparsifier found.

    Attributes:
        masks: weight name -> mask.
        statistics: batch-norm running statistics that belong to the masks, buffer name -> float32 (channels,); empty if
            the network keeps its own.
        history: the mean training loss of each epoch; empty for methods that do not learn.
        permutations: the channel orders that masks and statistics are for; empty if channels stay as they are.
        weights: new values of parameters, see `MaskSet.weights`; empty if the method keeps the weights frozen.
        positions: layer name -> which output positions are computed; empty if all are.
    """

    masks: Mapping[str, LayerMask]
    statistics: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    history: tuple[TrainingPoint, ...] = ()
    permutations: tuple[AxisPermutation, ...] = ()
    weights: Mapping[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    positions: Mapping[str, PositionMask] = field(default_factory=dict)


class Sparsifier(ABC):
    """Chooses masks for a network, which it leaves as it is. Subclasses are final."""

    @abstractmethod
    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """Choose a mask for every layer in `layers`.

        Args:
            model: the trained network in evaluation mode; not changed.
            layers: the layers to mask.
            train: training images and labels.
        """


@final
@dataclass(frozen=True, kw_only=True)
class Given(Sparsifier):
    """Returns masks that are known already, for another sparsifier to go on from.

    Attributes:
        outcome: what to return.
    """

    outcome: Outcome

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        return self.outcome
