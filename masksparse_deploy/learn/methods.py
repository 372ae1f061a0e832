"""The sparsifiers that the options ask for, put together from their parts."""

import dataclasses
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.adaprune.sparsifier import AdaPrune
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.dynamic.sparse_training import SparseTraining, TrainingMethod
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.evaluation import compute_logits, substitutes
from masksparse_deploy.learn.learned import Learned
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.permutation.apply import check_unchanged, permute
from masksparse_deploy.learn.permutation.find import find_permutations
from masksparse_deploy.learn.permuted import Permuted
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.positions.sparsifier import PositionTraining
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sensitivity import mean_divergence
from masksparse_deploy.learn.sparsifier import Given, Outcome, Sparsifier

__all__ = ["CHECKPOINT", "TENSORBOARD", "Methods", "WeightMethod"]

# These bring new weights; all others leave them frozen.
WeightMethod = Literal["adaprune", "sparse-training", "subp", "blocks", "positions"]

CHECKPOINT = "learn.checkpoint"
TENSORBOARD = "tensorboard"
# Images on which the permuted network is held against the original.
_CHECKED_COUNT = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Methods:
    """One network, its layers and its training images, and what can be done with them.

    Attributes:
        model: the trained network in evaluation mode; never changed.
        layers: the layers to mask.
        train: training images and labels.
        options: of all methods.
        pattern: N:M or 1xN.
        may_decide: whether there are validation images, so that a choice need not be made on the test images.
        device: where statistics are estimated.
        out: folder of the checkpoint and of TensorBoard's files.
        progress: told of every batch.
    """

    model: nn.Module
    layers: tuple[EligibleLayer, ...]
    train: Samples
    options: MaskOptions
    pattern: Pattern
    may_decide: bool
    device: torch.device
    out: Path
    progress: Progress

    @property
    def has_batch_norm(self) -> bool:
        """Whether there are running statistics to estimate again."""
        return bool(batch_norms(self.model))

    @cached_property
    def permutations(self) -> tuple[AxisPermutation, ...]:
        """The channel order that keeps more magnitude, searched once and checked to leave the network's function alone."""
        pattern = self._groups
        found = find_permutations(
            self.model,
            self.layers,
            self.train.images.shape[1:],
            pattern,
            seed=self.options.seed,
            progress=self.progress,
        )
        if not found:
            return found
        permuted = permute(self.model, found)
        # The search looks at the groups of input channels only.
        if pattern.transposable and self._kept_share(permuted) <= self._kept_share(self.model):
            return ()
        check_unchanged(self.model, permuted, self.train.images[:_CHECKED_COUNT])
        return found

    @property
    def _groups(self) -> NMPattern:
        """The pattern, of methods that only know N:M: others are refused before with a 1xN one."""
        assert isinstance(self.pattern, NMPattern)
        return self.pattern

    @property
    def is_transposable(self) -> bool:
        """Whether masks shall hold along the output channels too."""
        return isinstance(self.pattern, NMPattern) and self.pattern.transposable

    def _kept_share(self, model: nn.Module) -> float:
        """What transposable masks keep of each layer's magnitude, summed over the layers."""
        masks = self.transposable().sparsify(model, self.layers, self.train).masks
        shares = 0.0
        for name, mask in masks.items():
            magnitude = model.get_parameter(name).detach().abs().double().numpy()
            shares += float(magnitude[mask.keep].sum() / max(magnitude.sum(), np.finfo(np.float64).tiny))
        return shares

    def magnitude(self) -> Sparsifier:
        """The N largest |weight| of every group, whatever that leaves in the columns of a tile; or the largest blocks."""
        if self.is_transposable:
            return Magnitude(pattern=dataclasses.replace(self._groups, transposable=False))
        return Magnitude(pattern=self.pattern)

    def transposable(self) -> Sparsifier:
        """The masks of the transposable pattern that keep the most magnitude."""
        return Magnitude(pattern=self.pattern, solver=self.options.solver)

    def reestimated(self, inner: Sparsifier) -> Sparsifier:
        """`inner`, then batch-norm re-estimation."""
        return Reestimated(
            inner=inner,
            calibration_count=self.options.calibration_count,
            batch_size=self.options.batch_size,
            augment=self.options.augment,
            device=self.device,
            seed=self.options.seed,
            progress=self.progress,
        )

    def check(self) -> None:
        """Refuse what learning would refuse, before the baselines are computed; the recipe may come to learning too.

        Raises:
            UsageError: options, network and data do not fit one another.
            MachineError: a device or a package is missing.
        """
        method = self.options.method
        if method in get_args(TrainingMethod):
            self.sparse_training().check(self.model, self.layers, self.train)
        if method == "positions":
            self.position_training().check(self.model, self.layers, self.train)
        if method in ("auto", "scores", "gumbel"):
            self.learned("gumbel" if method == "gumbel" else "scores").check(self.model, self.layers, self.train)

    def learned(self, method: Method) -> Learned:
        """Masks learned by gradient descent."""
        return Learned(
            options=self.options,
            method=method,
            checkpoint=self.out / CHECKPOINT,
            log_folder=self.out / TENSORBOARD if self.options.tensorboard else None,
            progress=self.progress,
        )

    def adaprune(self) -> Sparsifier:
        """Masks by magnitude, with kept weights fitted to the dense layers' outputs."""
        return AdaPrune(
            pattern=self._groups,
            calibration_count=self.options.calibration_count,
            batch_size=self.options.batch_size,
            augment=self.options.augment,
            seed=self.options.seed,
            reconstruction=self.options.reconstruction,
            ridge=self.options.ridge,
            solver=self.options.solver,
            device=self.device,
            progress=self.progress,
        )

    def sparse_training(self) -> SparseTraining:
        """Weights trained under masks."""
        method = self.options.method
        return SparseTraining(
            options=self.options,
            method=method if method == "subp" or method == "blocks" else "sparse-training",
            checkpoint=self.out / CHECKPOINT,
            log_folder=self.out / TENSORBOARD if self.options.tensorboard else None,
            progress=self.progress,
        )

    def position_training(self) -> PositionTraining:
        """Dense weights trained while positions are left out."""
        return PositionTraining(
            options=self.options,
            checkpoint=self.out / CHECKPOINT,
            log_folder=self.out / TENSORBOARD if self.options.tensorboard else None,
            progress=self.progress,
        )

    def sparsifier(self, method: Method | WeightMethod) -> Sparsifier:
        """What takes data to find masks, or new weights with them."""
        if method == "adaprune":
            return self.adaprune()
        if method == "gumbel" or method == "scores":
            return self.learned(method)
        if method == "positions":
            return self.position_training()
        return self.sparse_training()

    def run(self, sparsifier: Sparsifier, *, permuted: bool) -> Outcome:
        """What `sparsifier` finds for the network, in the new channel order if `permuted`."""
        chosen = Permuted(inner=sparsifier, permutations=self.permutations) if permuted else sparsifier
        return chosen.sparsify(self.model, self.layers, self.train)

    def divergence(self, outcome: Outcome) -> float:
        """How far answers are from the dense network's (`mean_divergence`), on calibration images as they are."""
        chosen = np.random.default_rng(self.options.seed).permutation(len(self.train))[: self.options.calibration_count]
        images = Samples(self.train.images[chosen])
        network = permute(self.model, outcome.permutations) if outcome.permutations else self.model
        replaced = substitutes(network, outcome.masks, outcome.statistics, outcome.weights)
        logits = []
        for state, positions in (({}, {}), (replaced, outcome.positions)):
            with masked_positions(network, positions):
                logits.append(
                    compute_logits(
                        network, images, state, batch_size=self.options.batch_size, device=self.device, progress=self.progress
                    )
                )
        return mean_divergence(logits[0], logits[1])

    def recalibrated(self, outcome: Outcome) -> Outcome:
        """Known masks with batch-norm statistics estimated again."""
        return self.run(self.reestimated(Given(outcome=outcome)), permuted=bool(outcome.permutations))
