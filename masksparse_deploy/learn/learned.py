"""Masks learned by gradient descent on frozen weights."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.mask_trainee import MaskTrainee
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.training import Training

__all__ = ["Learned"]


@final
@dataclass(frozen=True, kw_only=True)
class Learned(Sparsifier):
    """Learns masks by gradient descent, while the weights stay frozen; see `Training` for what it promises.

    Attributes:
        options: see `MaskOptions`.
        method: which parameters choose the masks: "scores", one for every weight, or "gumbel", one for every admissible row.
        checkpoint: file that holds the state; learning goes on from it if it is of the same run.
        log_folder: where the course of learning is written for TensorBoard; None for nowhere.
        progress: told after each step.
    """

    options: MaskOptions
    method: Method
    checkpoint: Path
    log_folder: Path | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`; raises what `Training.run` raises."""
        return self._training().run(model, layers, train)

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `sparsify` would raise before its first step; arguments are those of `sparsify`."""
        self._training().check(model, layers, train)

    def _training(self) -> Training:
        return Training(
            options=self.options,
            method=self.method,
            prepare=self._prepare,
            checkpoint=self.checkpoint,
            log_folder=self.log_folder,
            progress=self.progress,
        )

    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> MaskTrainee:
        return MaskTrainee(network, layers, NMPattern.parse(self.options.pattern), self.method)
