"""Magnitude masks: the N largest |weight| of every group, or of every row and column of a tile, or the largest blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.transposable.solve import Solver

__all__ = ["Magnitude"]


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude(Sparsifier):
    """Keeps the N largest |weight| of every group; needs no data.

    With a transposable pattern, what keeps the most |weight| of those masks that keep N in every row and in every column of
    each M x M tile (see `learn.transposable`). With a 1xN pattern, the blocks with the largest L1 norms.

    Attributes:
        pattern: of the masks.
        solver: of transposable masks; see `choose_mask` for the tiles that an approximation leaves wanting.
    """

    pattern: Pattern
    solver: Solver = "exact"

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        masks = {}
        for layer in layers:
            magnitude = np.abs(model.get_parameter(layer.weight_name).detach().numpy())
            keep = choose_mask(magnitude, self.pattern, self.solver)
            masks[layer.weight_name] = LayerMask(
                weight_name=layer.weight_name, keep=keep, group_axis=GROUP_AXIS, pattern=self.pattern
            )
        return Outcome(masks=masks)
