"""How the masks of weights in training are chosen: once, or anew as training goes on."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern

__all__ = ["Choose", "Fixed", "Following", "Keep", "MaskRule", "Weight"]

# float32 (out_channels, in_channels, ...), finite; and which of its weights are kept.
Weight = npt.NDArray[np.float32]
Keep = npt.NDArray[np.bool_]

# Takes |weight|; returns keep in the same shape.
Choose = Callable[[Weight], Keep]


class MaskRule(ABC):
    """Chooses the masks that weights are trained under. Subclasses are final.

    Attributes:
        pattern: of the finished masks.
        dropped_decay: lambda; the gradient of a weight W gets lambda (1 - keep) W more, so that what is dropped fades.
    """

    pattern: Pattern
    dropped_decay: float = 0.0

    @abstractmethod
    def first(self, weight: Weight) -> Keep:
        """The mask before the first step."""

    @abstractmethod
    def is_due(self, step: int, total_steps: int) -> bool:
        """Whether masks are chosen anew before step `step` of `total_steps`, counted from 0."""

    @abstractmethod
    def choose(self, weight: Weight, keep: Keep, *, step: int, total_steps: int, layer: int) -> Keep:
        """The mask from a step on for which it is due.

        Args:
            weight: dropped weights with the values that they have in training.
            keep: the mask so far.
            step: the next one.
            total_steps: of the training.
            layer: the layer's place among those that are masked, for what is drawn at random.
        """

    def finished(self, weight: Weight, keep: Keep) -> Keep:
        """The mask if training ended now; `keep` itself unless the rule keeps more than the pattern on its way."""
        return keep


@final
@dataclass(frozen=True, kw_only=True)
class Fixed(MaskRule):
    """Chosen once, from the magnitudes that training starts with.

    Attributes:
        chosen_by: the mask for given magnitudes.
    """

    pattern: Pattern
    chosen_by: Choose

    def first(self, weight: Weight) -> Keep:
        """See `MaskRule.first`."""
        return self.chosen_by(np.abs(weight))

    def is_due(self, step: int, total_steps: int) -> bool:
        """See `MaskRule.is_due`: never."""
        return False

    def choose(self, weight: Weight, keep: Keep, *, step: int, total_steps: int, layer: int) -> Keep:
        """See `MaskRule.choose`."""
        return keep


@final
@dataclass(frozen=True, kw_only=True)
class Following(MaskRule):
    """Follows the magnitudes every so many steps.

    Attributes:
        chosen_by: the mask for given magnitudes.
        mask_steps: steps from one choice to the next.
    """

    pattern: Pattern
    chosen_by: Choose
    mask_steps: int

    def first(self, weight: Weight) -> Keep:
        """See `MaskRule.first`."""
        return self.chosen_by(np.abs(weight))

    def is_due(self, step: int, total_steps: int) -> bool:
        """See `MaskRule.is_due`."""
        return step > 0 and step % self.mask_steps == 0

    def choose(self, weight: Weight, keep: Keep, *, step: int, total_steps: int, layer: int) -> Keep:
        """See `MaskRule.choose`."""
        return self.chosen_by(np.abs(weight))
