"""Magnitude masks: the N largest |weight| of every group, or of every row and column of a tile."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.transposable.solve import Solver, transposable_mask

__all__ = ["Magnitude"]


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude(Sparsifier):
    """Keeps the N largest |weight| of every group; needs no data.

    With a transposable pattern, what keeps the most |weight| of those masks that keep N in every row and in every column of
    each M x M tile (see `learn.transposable`).

    Attributes:
        pattern: N:M.
        solver: of transposable masks.
    """

    pattern: NMPattern
    solver: Solver = "exact"

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`.

        Raises:
            UsageError: the solver of transposable masks leaves some row or column with fewer than N weights.
        """
        masks = {}
        for layer in layers:
            magnitude = np.abs(model.get_parameter(layer.weight_name).detach().numpy())
            if self.pattern.transposable:
                keep = transposable_mask(magnitude, self.pattern, solver=self.solver)
                self._check_saturated(keep, layer)
            else:
                keep = self.pattern.keep_largest(magnitude, group_axis=GROUP_AXIS)
            masks[layer.weight_name] = LayerMask(
                weight_name=layer.weight_name, keep=keep, group_axis=GROUP_AXIS, pattern=self.pattern
            )
        return Outcome(masks=masks)

    def _check_saturated(self, keep: npt.NDArray[np.bool_], layer: EligibleLayer) -> None:
        """Approximations may keep fewer than N in a row and a column, never more."""
        n, m = self.pattern.n, self.pattern.m
        missing = keep.size // m * n - int(np.count_nonzero(keep))
        if missing:
            raise UsageError(
                f"mask.solver {self.solver!r} keeps {missing:,} weights of {layer.name} fewer than {self.pattern} allows, and "
                f"masks keep exactly {n} of {m} in every row and column; set mask.solver: exact"
            )
