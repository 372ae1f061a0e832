"""What leaving positions out adds to the training of any method: layers, maps, and images held out to choose among maps."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.evaluation import compute_logits
from masksparse_deploy.learn.positions.apply import PositionHook
from masksparse_deploy.learn.positions.choice import HeldOut, MapChoice, TrainingLoss
from masksparse_deploy.learn.positions.held_out import HeldOutLoss
from masksparse_deploy.learn.positions.maps import PositionMaps
from masksparse_deploy.learn.positions.survey import survey_positions
from masksparse_deploy.learn.positions.trainee import PositionTrainee, put_hooks
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["PositionPlan", "plan_positions"]

# First word of the seed, after those of the batches and of the maps.
_HELD_OUT = 5
_HELD_OUT_BATCHES = 8
# Of few images no more than every eighth is held out.
_HELD_OUT_DIVISOR = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionPlan:
    """The same in every process, and after an interruption.

    Attributes:
        model: the dense network.
        train: all training images.
        options: see `MaskOptions`.
        maps: over the layers that will leave positions out.
        used: which training images are trained on, int64, ascending.
        held_out: which are held out, int64, in random order; empty if training losses choose the map.
    """

    model: nn.Module
    train: Samples
    options: MaskOptions
    maps: PositionMaps
    used: npt.NDArray[np.int64]
    held_out: npt.NDArray[np.int64]

    def prepare(self, network: nn.Module, inner: Callable[[nn.Module], Trainee]) -> PositionTrainee:
        """Make a copy of the network ready, in place: by `inner`, and to leave positions out."""
        hooks = put_hooks(network, self.maps)
        return PositionTrainee(
            inner(network),
            hooks,
            self.maps,
            self._choice(network, hooks),
            rate=self.options.position_rate,
            ramp_end=self.options.position_ramp_end,
        )

    def _choice(self, network: nn.Module, hooks: dict[str, PositionHook]) -> MapChoice:
        if self.options.position_selection == "training-loss":
            return TrainingLoss()
        labels = self.train.known_labels
        samples = Samples(self.train.images[self.held_out], None if labels is None else labels[self.held_out])
        dense_logits = None
        if self.options.distillation > 0:
            device = next(network.parameters()).device
            dense_logits = compute_logits(self.model, samples, batch_size=self.options.batch_size, device=device)
        loss = HeldOutLoss(
            network=network,
            hooks=hooks,
            maps=self.maps,
            samples=samples,
            dense_logits=dense_logits,
            options=self.options,
        )
        return HeldOut(loss=loss, batch_count=loss.batch_count)


def plan_positions(model: nn.Module, train: Samples, options: MaskOptions) -> PositionPlan:
    """Survey the layers, and hold images out if maps are to be compared on some.

    Raises:
        UsageError: what `survey_positions` raises, or there are too few training images to hold any out.
    """
    survey = survey_positions(model, train.images.shape[1:], options)
    maps = PositionMaps(
        sizes={layer.name: layer.size for layer in survey.layers},
        image_size=(train.images.shape[2], train.images.shape[3]),
        propagated=options.position_maps == "propagated",
        seed=options.seed,
    )
    order = np.random.default_rng((_HELD_OUT, options.seed)).permutation(len(train))
    count = _held_out_count(len(train), options)
    used = np.sort(order[count:])
    return PositionPlan(model=model, train=train, options=options, maps=maps, used=used, held_out=order[:count])


def _held_out_count(total: int, options: MaskOptions) -> int:
    if options.position_selection == "training-loss":
        return 0
    count = min(_HELD_OUT_BATCHES * options.batch_size, total // _HELD_OUT_DIVISOR)
    # Batch norm cannot compute a variance from a single value.
    if count < 2:
        raise UsageError(
            f"data.train has {total} images, and with mask.position_selection held-out an eighth of them, at least 2, are "
            "held out to choose among maps; use more images, or mask.position_selection: training-loss"
        )
    return count
