"""How a stored weight is turned round before an operator multiplies by it, and back."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["LayoutStep", "as_stored", "stored_axis"]


@dataclass(frozen=True, kw_only=True)
class LayoutStep:
    """A transposition by `order`, or a change of shape where that is None; `before` is the shape that goes in."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    order: tuple[int, ...] | None = None


def as_stored(array: npt.NDArray[Any], steps: Sequence[LayoutStep]) -> npt.NDArray[Any]:
    """Undo `steps`, given from the stored constant to the operator, on an array in the operator's layout."""
    for step in reversed(steps):
        array = array.reshape(step.before) if step.order is None else array.transpose(np.argsort(step.order))
    return array


def stored_axis(axis: int, steps: Sequence[LayoutStep]) -> int | None:
    """The axis of the stored constant that becomes `axis` of the operator's weight; None where a reshape splits or joins it."""
    for step in reversed(steps):
        if step.order is not None:
            axis = step.order[axis]
            continue
        outer, length = math.prod(step.after[:axis]), step.after[axis]
        # An axis of the same length with as many elements before it runs over the same elements.
        same = (place for place, old in enumerate(step.before) if old == length and math.prod(step.before[:place]) == outer)
        found = next(same, None)
        if found is None:
            return None
        axis = found
    return axis
