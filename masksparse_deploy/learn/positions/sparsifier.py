"""The method "positions": dense weights train while the network leaves output positions out."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.mask_rule import Fixed
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.training import Training

__all__ = ["PositionTraining"]


@final
@dataclass(frozen=True, kw_only=True)
class PositionTraining(Sparsifier):
    """Trains a network that leaves out a share of its convolutions' output positions, the same for all channels and images.

    Grimaldi et al. 2023, "Accelerating Deep Neural Networks via Semi-Structured Activation Sparsity": a fresh random map in
    every step, a growing share, and one map at the end; see `positions.maps` and `positions.choice`. See `Training` for loss,
    checkpoints and what is promised of equal runs.

    Attributes:
        options: see `MaskOptions`; `position_rate` is above 0.
        checkpoint: file that holds the state; training goes on from it if it is of the same run.
        log_folder: where the course of training is written for TensorBoard; None for nowhere.
        progress: told after each step.
    """

    options: MaskOptions
    checkpoint: Path
    log_folder: Path | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`; no weights are masked, and `layers` is empty. Raises what `Training.run` raises."""
        return self._training().run(model, layers, train)

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `sparsify` would raise before its first step; arguments are those of `sparsify`."""
        self._training().check(model, layers, train)

    def _training(self) -> Training:
        return Training(
            options=self.options,
            method="positions",
            prepare=_dense_trainee,
            checkpoint=self.checkpoint,
            log_folder=self.log_folder,
            progress=self.progress,
            description="training with masked positions",
        )


def _dense_trainee(network: nn.Module, layers: Sequence[EligibleLayer]) -> WeightTrainee:
    assert not layers, "method positions masks no weights"
    pattern = NMPattern(n=2, m=4)
    # There is no layer for the rule to choose a mask for.
    return WeightTrainee(network, (), Fixed(pattern=pattern, chosen_by=partial(pattern.keep_largest, group_axis=GROUP_AXIS)))
