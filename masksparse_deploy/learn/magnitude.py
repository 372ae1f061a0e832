"""Magnitude masks: the N largest |weight| of every group, with or without new batch-norm statistics."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import reestimate
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.evaluation import substitutes
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["Magnitude", "MagnitudeBatchNorm"]


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


@final
@dataclass(frozen=True, kw_only=True)
class MagnitudeBatchNorm(Sparsifier):
    """Magnitude masks, then batch-norm statistics estimated again on training images, without labels.

    Attributes:
        pattern: N:M.
        calibration_count: how many training images, drawn at random.
        batch_size: images in a batch.
        seed: of the drawing.
        progress: told after each batch.
    """

    pattern: NMPattern
    calibration_count: int
    batch_size: int
    seed: int
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        masks = Magnitude(pattern=self.pattern).sparsify(model, layers, train).masks
        chosen = np.random.default_rng(self.seed).permutation(len(train))[: self.calibration_count]
        statistics = reestimate(
            model,
            substitutes(model, masks, {}),
            train.images[chosen],
            batch_size=self.batch_size,
            progress=self.progress,
        )
        return Outcome(masks=masks, statistics=statistics)
