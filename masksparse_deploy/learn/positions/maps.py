"""Random maps of scores, the masks that they give every layer, and the ramp of the share that is dropped."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

__all__ = ["PositionMaps", "Size", "dropped_count", "freezing_step", "keep_highest", "pool_scores", "ramped_rate"]

Size = tuple[int, int]

# First word of the seeds; the batches have the words before it.
_MAP = 4
_RAMP_START = 0.1


@dataclass(frozen=True, kw_only=True)
class PositionMaps:
    """All maps that training may draw, each known by its number; the same in every process.

    A map is a score in [0, 1) for every pixel of the input. A layer's scores are the means of the pixels that each of its
    output positions stands for (adaptive average pooling, for any two sizes), and the lowest are dropped. So layers of one
    size share a mask, and masks of different sizes drop the same places.

    Attributes:
        sizes: layer name -> (height, width) of its output.
        image_size: (height, width) of the input.
        propagated: whether all layers follow one map; else each has one of its own, of its output's size.
        seed: of all maps.
    """

    sizes: Mapping[str, Size]
    image_size: Size
    propagated: bool
    seed: int

    def keep(self, number: int, rate: float) -> dict[str, npt.NDArray[np.bool_]]:
        """Layer name -> keep, bool (height, width), of a map, with the share `rate` of every layer's positions dropped."""
        if not self.propagated:
            return {
                name: keep_highest(np.random.default_rng((_MAP, self.seed, number, index)).random(size), rate)
                for index, (name, size) in enumerate(self.sizes.items(), 1)
            }
        scores = np.random.default_rng((_MAP, self.seed, number, 0)).random(self.image_size)
        of_size = {size: keep_highest(pool_scores(scores, size), rate) for size in set(self.sizes.values())}
        return {name: of_size[size] for name, size in self.sizes.items()}


def pool_scores(scores: npt.NDArray[np.float64], size: Size) -> npt.NDArray[np.float64]:
    """The mean of the scores, float64 (height, width), that each position of an output of `size` stands for."""
    pooled: npt.NDArray[np.float64] = functional.adaptive_avg_pool2d(torch.from_numpy(scores)[None], size)[0].numpy()
    return pooled


def dropped_count(size: Size, rate: float) -> int:
    """How many of an output's positions are dropped: the share `rate`, rounded, halves up."""
    return math.floor(rate * size[0] * size[1] + 0.5)


def keep_highest(scores: npt.NDArray[np.float64], rate: float) -> npt.NDArray[np.bool_]:
    """keep, bool: all but the `dropped_count` lowest scores, of equal ones the first."""
    keep = np.ones(scores.size, dtype=np.bool_)
    keep[np.argsort(scores, axis=None, kind="stable")[: dropped_count((scores.shape[0], scores.shape[1]), rate)]] = False
    return keep.reshape(scores.shape)


def freezing_step(total_steps: int, ramp_end: float) -> int:
    """The first step with the final masks: after the share `ramp_end` of all steps, and the last step at the latest."""
    return min(math.ceil(ramp_end * total_steps), total_steps - 1)


def ramped_rate(step: int, total_steps: int, rate: float, ramp_end: float) -> float:
    """s(t) = s_f (1 - (1 - p)^2), p going from 0 at a tenth of the steps to 1 in `freezing_step`; steps count from 0.

    Grimaldi et al. 2023 end the ramp at nine tenths of the steps.
    """
    start, end = _RAMP_START * total_steps, freezing_step(total_steps, ramp_end)
    if step >= end:
        return rate
    p = max(0.0, (step - start) / (end - start))
    return rate * (1 - (1 - p) ** 2)
