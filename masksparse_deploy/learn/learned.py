"""Masks learned by gradient descent on frozen weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.mask_trainee import MaskTrainee
from masksparse_deploy.learn.trained import Trained

__all__ = ["Learned"]


@final
@dataclass(frozen=True, kw_only=True)
class Learned(Trained):
    """Learns masks by gradient descent, while the weights stay frozen.

    Attributes:
        method: which parameters choose the masks: "scores", one for every weight, or "gumbel", one for every admissible row.
    """

    method: Method

    def _named(self) -> tuple[str, str]:
        return self.method, "learning masks"

    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> MaskTrainee:
        return MaskTrainee(network, layers, NMPattern.parse(self.options.pattern), self.method)
