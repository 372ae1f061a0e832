"""Dynamic sparse training: all weights train, and masks are chosen anew from their magnitudes every so many steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import torch
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.training import Training

__all__ = ["SparseTraining"]

METHOD = "sparse-training"

_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@final
@dataclass(frozen=True, kw_only=True)
class SparseTraining(Sparsifier):
    """Trains a network whose weights are N:M, or transposable N:M, in every forward and backward pass.

    Hubara et al. 2021, "Accelerated Sparse Neural Training": the forward pass multiplies by keep * W and the
    backward pass, for the gradients of activations, by the transpose of the same, so that with a transposable mask both have
    the pattern; the gradient of W is straight-through. Masks follow |W| every `options.mask_steps` steps. See `Training` for
    loss, checkpoints and what is promised of equal runs.

    Attributes:
        options: see `MaskOptions`; the pattern says whether masks are transposable, `solver` how these are found.
        checkpoint: file that holds the state; training goes on from it if it is of the same run.
        log_folder: where the course of training is written for TensorBoard; None for nowhere.
        progress: told after each step.
    """

    options: MaskOptions
    checkpoint: Path
    log_folder: Path | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`; the outcome has new weights. Raises what `Training.run` raises."""
        return self._training().run(model, layers, train)

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `sparsify` would raise before its first step; arguments are those of `sparsify`."""
        self._training().check(model, layers, train)

    def _training(self) -> Training:
        return Training(
            options=self.options,
            method=METHOD,
            prepare=self._prepare,
            checkpoint=self.checkpoint,
            log_folder=self.log_folder,
            progress=self.progress,
            description="sparse training",
        )

    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> WeightTrainee:
        pattern = NMPattern.parse(self.options.pattern)
        choose = partial(choose_mask, pattern=pattern, solver=self.options.solver)
        steps, dtype = self.options.mask_steps, _DTYPES[self.options.autocast]
        return WeightTrainee(network, layers, pattern, choose, mask_steps=steps, dtype=dtype)
