"""AdaPrune as a sparsifier: masks by magnitude, then every layer's kept weights fitted to its dense outputs."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.adaprune.closed_form import solve_kept
from masksparse_deploy.learn.adaprune.gram import gram_matrices, in_passes
from masksparse_deploy.learn.adaprune.iterative import absorbed, descend, inputs_of
from masksparse_deploy.learn.augmentation import Augmentation, augment
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier
from masksparse_deploy.learn.transposable.solve import Solver

__all__ = ["AdaPrune"]

# Gram matrices held at once; with more of them the images pass through the network again.
_GRAM_BYTES = 2**30


@final
@dataclass(frozen=True, kw_only=True)
class AdaPrune(Sparsifier):
    """Keeps by magnitude, and fits the kept weights of every layer to its dense outputs; layers are independent of one another.

    Hubara et al. 2021 (arXiv 2102.08124). Biases and everything else stay as they are: what the fit leaves of a shift of the
    mean, batch-norm re-estimation takes away (`Reestimated` around this).

    Attributes:
        pattern: N:M, transposable or not.
        calibration_count: how many training images, drawn at random; the ones that `Reestimated` draws with the same seed.
        batch_size: images in a batch.
        augment: what the network was trained with.
        seed: of the drawing, and of the shifts.
        reconstruction: "closed-form" for the least squares solution (`solve_kept`), "iterative" for the authors' gradient
            descent (`descend`), which caches the inputs of one layer at a time.
        ridge: see `solve_kept`.
        steps: of the iterative reconstruction, for each layer.
        solver: of transposable masks.
        device: where the network runs; by default where it is.
        progress: told after each batch and each layer.
    """

    pattern: NMPattern
    calibration_count: int
    batch_size: int
    augment: Augmentation
    seed: int
    reconstruction: Literal["closed-form", "iterative"] = "closed-form"
    ridge: float = 1e-3
    steps: int = 1000
    solver: Solver = "exact"
    device: torch.device | None = None
    progress: Progress = silent

    def sparsify(self, model: nn.Module, layers: Sequence[EligibleLayer], train: Samples) -> Outcome:
        """See `Sparsifier.sparsify`.

        Raises:
            UsageError: a layer's weights cannot be fitted (`check_product`, `solve_kept`, `inputs_of`).
        """
        masks = Magnitude(pattern=self.pattern, solver=self.solver).sparsify(model, layers, train).masks
        dense = copy.deepcopy(model).to(self.device)
        fitted = self._solved if self.reconstruction == "closed-form" else self._descended
        weights: dict[str, npt.NDArray[np.float32]] = {}
        for layer, weight in fitted(dense, layers, masks, self.images(train)):
            weights[layer.weight_name] = weight.reshape(layer.shape).float().cpu().numpy()
            self.progress("fitting kept weights", len(weights), len(layers))
        return Outcome(masks=masks, weights=weights)

    def images(self, train: Samples) -> npt.NDArray[np.float32]:
        """The calibration images, float32 (count, channels, height, width)."""
        generator = np.random.default_rng(self.seed)
        chosen = generator.permutation(len(train))[: self.calibration_count]
        return augment(torch.from_numpy(train.images[chosen]), self.augment, generator).numpy()

    def _solved(
        self,
        dense: nn.Module,
        layers: Sequence[EligibleLayer],
        masks: Mapping[str, LayerMask],
        images: npt.NDArray[np.float32],
    ) -> Iterator[tuple[EligibleLayer, torch.Tensor]]:
        """Every layer with its new weight, from Gram matrices."""
        for chosen in in_passes(layers, limit_bytes=_GRAM_BYTES):
            grams = gram_matrices(dense, chosen, images, batch_size=self.batch_size, progress=self.progress)
            for layer in chosen:
                weight = dense.get_parameter(layer.weight_name).detach().double().flatten(1)
                keep = torch.tensor(masks[layer.weight_name].keep, device=weight.device).flatten(1)
                yield layer, solve_kept(grams.pop(layer.name), weight, keep, ridge=self.ridge)

    def _descended(
        self,
        dense: nn.Module,
        layers: Sequence[EligibleLayer],
        masks: Mapping[str, LayerMask],
        images: npt.NDArray[np.float32],
    ) -> Iterator[tuple[EligibleLayer, torch.Tensor]]:
        """Every layer with its new weight, by gradient descent."""
        for layer in layers:
            mask, module = masks[layer.weight_name], dense.get_submodule(layer.name)
            weight = dense.get_parameter(layer.weight_name).detach()
            start = torch.tensor(absorbed(weight.cpu().numpy(), mask), device=weight.device)
            keep = torch.tensor(mask.keep, device=weight.device)
            inputs = inputs_of(dense, layer.name, images, batch_size=self.batch_size, progress=self.progress)
            fitted = descend(module, start, keep, inputs, steps=self.steps, seed=self.seed)
            del inputs  # before those of the next layer come
            yield layer, fitted
