"""Channel permutation before any way to choose masks."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from torch import nn

from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.permutation.apply import permute
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["Permuted"]


@final
@dataclass(frozen=True, kw_only=True)
class Permuted(Sparsifier):
    """Another sparsifier's masks for the network in a new channel order, which computes the same.

    Attributes:
        inner: chooses the masks.
        permutations: the new order (see `permutation.search`).
    """

    inner: Sparsifier
    permutations: tuple[AxisPermutation, ...]

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        outcome = self.inner.sparsify(permute(model, self.permutations), layers, train)
        return dataclasses.replace(outcome, permutations=self.permutations)
