"""Sparse training: all weights train, under masks that follow them or were chosen before."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, final

import torch
from torch import nn

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.blocks import Subp
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.mask_rule import Fixed, Following, MaskRule
from masksparse_deploy.learn.requested import requested_pattern
from masksparse_deploy.learn.trained import Trained

__all__ = ["SparseTraining", "TrainingMethod"]

TrainingMethod = Literal["sparse-training", "subp", "blocks"]

_DESCRIPTIONS = {"sparse-training": "sparse training", "subp": "training under blocks", "blocks": "fine-tuning under blocks"}

_DTYPES = {"none": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


@final
@dataclass(frozen=True, kw_only=True)
class SparseTraining(Trained):
    """Trains a network whose weights are masked in every forward and backward pass.

    Hubara et al. 2021, "Accelerated Sparse Neural Training": the forward pass multiplies by keep * W and the
    backward pass, for the gradients of activations, by the transpose of the same, so that with a transposable mask both have
    the pattern; the gradient of W is straight-through.

    Attributes:
        options: see `MaskOptions`; the pattern says whether N:M masks are transposable, `solver` how these are found.
        method: "sparse-training", N:M masks that follow |W| every `options.mask_steps` steps; "subp", uniform 1xN blocks as
            `Subp` has them; "blocks", 1xN blocks chosen once, of the largest L1 norms, under which the kept weights are
            fine-tuned (Lin et al. 2022).
    """

    method: TrainingMethod = "sparse-training"

    def check(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> None:
        """Raise what `sparsify` would raise before its first step; arguments are those of `sparsify`.

        Raises:
            UsageError: training from scratch could not take its new statistics along, and what `Training.check` raises.
        """
        if self.options.initialization == "scratch" and not self.options.batch_norm and batch_norms(model):
            raise UsageError(
                "mask.initialization scratch trains new weights, to which the network's batch-norm statistics do not belong, "
                "and mask.batch_norm: false keeps these; set mask.batch_norm: true"
            )
        super().check(model, layers, train)

    def _named(self) -> tuple[str, str]:
        return self.method, _DESCRIPTIONS[self.method]

    def _prepare(self, network: nn.Module, layers: Sequence[EligibleLayer]) -> WeightTrainee:
        seed = self.options.seed if self.options.initialization == "scratch" else None
        return WeightTrainee(network, layers, self._rule(), dtype=_DTYPES[self.options.autocast], fresh_seed=seed)

    def _rule(self) -> MaskRule:
        options = self.options
        pattern = requested_pattern(options.model_copy(update={"method": self.method}))
        if self.method == "subp":
            assert isinstance(pattern, BlockPattern)
            return Subp(
                pattern=pattern,
                criterion=options.criterion,
                start=options.schedule_start,
                end=options.schedule_end,
                epochs=options.epochs,
                seed=options.seed,
            )
        choose = partial(choose_mask, pattern=pattern, solver=options.solver)
        if self.method == "blocks":
            return Fixed(pattern=pattern, chosen_by=choose)
        return Following(pattern=pattern, chosen_by=choose, mask_steps=options.mask_steps)
