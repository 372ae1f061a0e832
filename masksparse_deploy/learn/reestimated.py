"""Batch-norm re-estimation after any way to choose masks."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.augmentation import Augmentation, augment
from masksparse_deploy.learn.batch_norm import reestimate
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.evaluation import substitutes
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["Reestimated"]


@final
@dataclass(frozen=True, kw_only=True)
class Reestimated(Sparsifier):
    """Another sparsifier's masks, with batch-norm statistics estimated again on training images, without labels.

    The images are shifted and mirrored as in training: statistics of images as they are differ, and on CIFAR-10 they cost a
    dense network several points.

    Attributes:
        inner: chooses the masks, without permuting channels (that goes outside: `Permuted` of `Reestimated`).
        calibration_count: how many training images, drawn at random.
        batch_size: images in a batch.
        augment: what the network was trained with.
        device: where the network runs; by default where it is.
        seed: of the drawing, and of the shifts.
        progress: told after each batch.
    """

    inner: Sparsifier
    calibration_count: int
    batch_size: int
    augment: Augmentation
    seed: int
    device: torch.device | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`."""
        outcome = self.inner.sparsify(model, layers, train)
        generator = np.random.default_rng(self.seed)
        chosen = generator.permutation(len(train))[: self.calibration_count]
        images = augment(torch.from_numpy(train.images[chosen]), self.augment, generator)
        with masked_positions(model, outcome.positions):
            statistics = reestimate(
                model,
                substitutes(model, outcome.masks, {}, outcome.weights),
                images.numpy(),
                batch_size=self.batch_size,
                device=self.device,
                progress=self.progress,
            )
        return dataclasses.replace(outcome, statistics=statistics)
