"""What sparsifiers that train have in common: one `Training` each, run to its end or checked before it starts."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.trainee import Trainee
from masksparse_deploy.learn.training import Training

__all__ = ["Trained"]


@dataclass(frozen=True, kw_only=True)
class Trained(Sparsifier):
    """A sparsifier whose work is a training; see `Training` for loss, checkpoints and what is promised of equal runs.

    Attributes:
        options: see `MaskOptions`.
        checkpoint: file that holds the state; training goes on from it if it is of the same run.
        log_folder: where the course of training is written for TensorBoard; None for nowhere.
        progress: told after each step.
    """

    options: MaskOptions
    checkpoint: Path
    log_folder: Path | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`; raises what `Training.run` raises."""
        return self._training().run(model, layers, train)

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `sparsify` would raise before its first step; arguments are those of `sparsify`."""
        self._training().check(model, layers, train)

    @abstractmethod
    def _named(self) -> tuple[str, str]:
        """The method's name, which tells checkpoints apart, and what the progress says is being done."""

    @abstractmethod
    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> Trainee:
        """Make a copy of the network ready, in place; see `Training`."""

    def _training(self) -> Training:
        method, description = self._named()
        return Training(
            options=self.options,
            method=method,
            prepare=self._prepare,
            checkpoint=self.checkpoint,
            log_folder=self.log_folder,
            progress=self.progress,
            description=description,
        )
