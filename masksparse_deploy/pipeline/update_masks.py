"""The masks of an update: the old ones, made out to the new weights, and how well they suit these."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.artifacts.updating import MaskFit
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import MaskOptions, ModelOptions, UpdateOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples

if TYPE_CHECKING:
    from torch import nn

__all__ = ["NETWORK", "StatisticsSource", "Weights", "carried_over", "fit_of_masks", "masked_weights", "source_of_statistics"]

# Stands for all masked layers together.
NETWORK = "the network"

StatisticsSource = Literal["re-estimated", "kept", "the checkpoint's"]
Weights = Mapping[str, npt.NDArray[np.float64]]


def source_of_statistics(masks: MaskSet, options: UpdateOptions) -> StatisticsSource:
    """Where the batch-norm statistics of the sparse network come from.

    Statistics belong to weights: those estimated for the old ones are estimated again unless the user wants them kept.
    """
    if options.statistics == "keep" and masks.statistics:
        return "kept"
    if options.statistics == "reestimate" or (options.statistics == "auto" and masks.statistics):
        return "re-estimated"
    return "the checkpoint's"


def carried_over(
    masks: MaskSet,
    model: "nn.Module",
    *,
    source_sha256: str,
    statistics: StatisticsSource,
    train: Samples | None,
    options: MaskOptions,
    progress: Progress = silent,
) -> MaskSet:
    """The same masks and channel orders, for the weights that `model` has. Weights that the old set brought are left behind.

    Args:
        masks: the old mask set.
        model: the network with the new weights, in the checkpoint's channel order.
        source_sha256: fingerprint of its state.
        statistics: where the batch-norm statistics come from.
        train: training images, for statistics that are re-estimated.
        options: how the run that made the masks estimated statistics.
        progress: told of every batch.

    Raises:
        ArtifactError: the masks are for another network.
    """
    from masksparse_deploy.learn.permutation.apply import permute
    from masksparse_deploy.learn.reestimated import Reestimated
    from masksparse_deploy.learn.sparsifier import Given, Outcome

    parameters = dict(model.named_parameters())
    for name, mask in masks.layers.items():
        found = tuple(parameters[name].shape) if name in parameters else None
        if found != mask.keep.shape:
            raise ArtifactError(
                f"mask of {name}, shape {mask.keep.shape}: "
                + (f"the network's parameter has the shape {found}" if found else "the network has no such parameter")
                + "; the masks are for another network: run 'masksparse learn' for this one"
            )
    new = masks.statistics if statistics == "kept" else {}
    if statistics == "re-estimated":
        assert train is not None, "images to estimate statistics on"
        network = permute(model, masks.permutations) if masks.permutations else model
        reestimated = Reestimated(
            inner=Given(outcome=Outcome(masks=masks.layers, positions=masks.positions)),
            calibration_count=options.calibration_count,
            batch_size=options.batch_size,
            augment=options.augment,
            seed=options.seed,
            progress=progress,
        )
        new = reestimated.sparsify(network, [], train).statistics
    return replace(masks, source_sha256=source_sha256, statistics=new, weights={})


def masked_weights(options: ModelOptions, folder: Path, masks: MaskSet) -> tuple[str, Weights]:
    """The fingerprint of a checkpoint, and the weights that masks apply to, in the masks' channel order.

    Raises:
        MasksparseError: as learn.model.load_model does.
    """
    from masksparse_deploy.learn.model import load_model, state_fingerprint
    from masksparse_deploy.learn.permutation.apply import permute

    model = load_model(options, folder)
    source_sha256 = state_fingerprint(model)
    network = permute(model, masks.permutations) if masks.permutations else model
    return source_sha256, {name: network.get_parameter(name).detach().double().numpy() for name in masks.layers}


def fit_of_masks(masks: MaskSet, new: Weights, old: Weights | None, *, points: float) -> tuple[MaskFit, ...]:
    """How well masks suit the new weights, layer by layer and for the network, against how well they did the old ones.

    Args:
        masks: the masks.
        new: weight name -> float64 array in the masks' channel order.
        old: the same of the weights that the masks were made for; None if they are gone.
        points: a fall of more percentage points means that a mask has aged.
    """
    after = {name: _Kept.of(mask, new[name]) for name, mask in masks.layers.items()}
    before = None if old is None else {name: _Kept.of(mask, old[name]) for name, mask in masks.layers.items()}
    patterns = sorted({str(mask.pattern) for mask in masks.layers.values()})
    rows = [
        _fit(name.removesuffix(".weight"), str(mask.pattern), after[name], None if before is None else before[name], points)
        for name, mask in masks.layers.items()
    ]
    whole = _fit(NETWORK, ", ".join(patterns), _Kept.sum(after), None if before is None else _Kept.sum(before), points)
    return (*rows, whole)


class _Kept:
    """Sums over weights: squares and magnitudes that a mask keeps, and that the best mask of its pattern would keep."""

    def __init__(self, sums: npt.NDArray[np.float64]) -> None:
        self.sums = sums

    @classmethod
    def of(cls, mask: LayerMask, weight: npt.NDArray[np.float64]) -> "_Kept":
        sums = []
        for values in (weight**2, np.abs(weight)):
            # scaled into the range of float32; the sums are of the values themselves
            scores = (values / (values.max(initial=0) or 1)).astype(np.float32)
            best = _best(scores, mask.pattern)
            # scores that float32 cannot tell apart are no reason to say that the mask is better than the best
            kept = float(values[mask.keep].sum())
            sums += [kept, max(kept, float(values[best].sum()))]
        return cls(np.array(sums))

    @classmethod
    def sum(cls, parts: Mapping[str, "_Kept"]) -> "_Kept":
        # Of a network that only leaves positions out, no weight is masked.
        return cls(np.sum([np.zeros(4), *(part.sums for part in parts.values())], axis=0))

    @property
    def norm(self) -> float:
        kept, best = self.sums[:2]
        return float(np.sqrt(kept / best)) if best else 1.0

    @property
    def magnitude(self) -> float:
        kept, best = self.sums[2:]
        return float(kept / best) if best else 1.0


def _best(scores: npt.NDArray[np.float32], pattern: Pattern) -> npt.NDArray[np.bool_]:
    """The mask of the pattern that keeps the largest sum of scores."""
    from masksparse_deploy.learn.choose_mask import choose_mask

    if not isinstance(pattern, BlockPattern):
        return choose_mask(scores, pattern, "exact")
    groups = scores.reshape(scores.shape[0] // pattern.n, pattern.n, scores.shape[1], -1)
    return pattern.expand(pattern.keep_largest(groups.sum(axis=(1, 3))), scores.shape)


def _fit(layer: str, pattern: str, after: _Kept, before: _Kept | None, points: float) -> MaskFit:
    return MaskFit(
        layer=layer,
        pattern=pattern,
        norm=after.norm,
        magnitude=after.magnitude,
        norm_before=None if before is None else before.norm,
        magnitude_before=None if before is None else before.magnitude,
        aged=None if before is None else 100 * (before.norm - after.norm) > points,
    )
