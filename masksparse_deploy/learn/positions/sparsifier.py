"""The method "positions": dense weights train while the network leaves output positions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from masksparse_deploy.learn.dynamic.dense import dense_trainee
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.trained import Trained

__all__ = ["PositionTraining"]


@final
@dataclass(frozen=True, kw_only=True)
class PositionTraining(Trained):
    """Trains a network that leaves out a share of its convolutions' output positions, the same for all channels and images.

    Grimaldi et al. 2023, "Accelerating Deep Neural Networks via Semi-Structured Activation Sparsity": a fresh random map in
    every step, a growing share, and one map at the end; see `positions.maps` and `positions.choice`. `layers` of `sparsify` is
    empty, and `options.position_rate` above 0.
    """

    def _named(self) -> tuple[str, str]:
        return "positions", "training with masked positions"

    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> WeightTrainee:
        return dense_trainee(network, layers)
