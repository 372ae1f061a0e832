"""Magnitude masks: the N largest |weight| of every group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["Magnitude"]


@final
@dataclass(frozen=True, kw_only=True)
class Magnitude(Sparsifier):
    """Keeps the N largest |weight| of every group; needs no data.

    Attributes:
        pattern: N:M.
    """

    pattern: NMPattern

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        masks = {}
        for layer in layers:
            magnitude = np.abs(model.get_parameter(layer.weight_name).detach().numpy())
            keep = self.pattern.keep_largest(magnitude, group_axis=GROUP_AXIS)
            masks[layer.weight_name] = LayerMask(
                weight_name=layer.weight_name, keep=keep, group_axis=GROUP_AXIS, pattern=self.pattern
            )
        return Outcome(masks=masks)
