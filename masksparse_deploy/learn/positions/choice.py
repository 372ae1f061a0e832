"""Which map of positions is kept: the step of the lowest training loss, or the best of several on images held out."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from accelerate.utils import reduce

__all__ = ["HeldOut", "MapChoice", "TrainingLoss", "best_by_halving"]

# Maps that are compared; each round halves them.
_CANDIDATES = 32

# The mean loss over a range of the batches held out, of the network with the map of a number at the final share.
Loss = Callable[[int, range], float]


class MapChoice(ABC):
    """Settles on the number of a map (see `PositionMaps`). Subclasses are final."""

    @abstractmethod
    def seen(self, step: int, loss: torch.Tensor) -> None:
        """Training took step `step` with the map of that number; `loss` is this process's, a scalar tensor."""

    @abstractmethod
    def settle(self, step: int, total_steps: int) -> int:
        """The number of the map to keep, before step `step`; those of all steps are below `total_steps`."""

    def state(self) -> dict[str, Any]:
        """All that `seen` changed: tensors and plain values."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned."""
        del state


@final
class TrainingLoss(MapChoice):
    """The map of the step with the lowest training loss, as Grimaldi et al. 2023 have it; steps before the ramp count, too.

    Losses of different steps are of different batches, weights and shares of dropped positions, and the last count most: a
    loss is lowest where little is dropped, so that the map is as good as any other, and no better than that on average.
    """

    def __init__(self) -> None:
        """Start with no step seen."""
        self._best = torch.tensor([torch.inf, -1.0], dtype=torch.float64)

    def seen(self, step: int, loss: torch.Tensor) -> None:
        """See `MapChoice.seen`."""
        mean = reduce(loss.detach().double(), "mean")
        assert isinstance(mean, torch.Tensor)
        # On the device, so that nothing waits for it.
        self._best = self._best.to(mean.device)
        self._best = torch.where(mean < self._best[0], torch.stack([mean, torch.full_like(mean, step)]), self._best)

    def settle(self, step: int, total_steps: int) -> int:
        """See `MapChoice.settle`; the step's own map if none was seen before."""
        best = int(self._best[1])
        return best if best >= 0 else step

    def state(self) -> dict[str, Any]:
        """See `MapChoice.state`."""
        return {"best": self._best}

    def restore(self, state: dict[str, Any]) -> None:
        """See `MapChoice.restore`."""
        self._best = state["best"].clone()


@final
@dataclass(frozen=True, kw_only=True)
class HeldOut(MapChoice):
    """The best of fresh maps, all at the final share, with the same weights and on the same images, held out from training.

    Attributes:
        loss: of a map on some of the batches held out.
        batch_count: how many batches these are.
    """

    loss: Loss
    batch_count: int

    def seen(self, step: int, loss: torch.Tensor) -> None:
        """See `MapChoice.seen`; training losses are not looked at."""

    def settle(self, step: int, total_steps: int) -> int:
        """See `MapChoice.settle`."""
        return best_by_halving(range(total_steps, total_steps + _CANDIDATES), self.loss, self.batch_count)


def best_by_halving(numbers: Sequence[int], loss: Loss, batch_count: int) -> int:
    """The number of the lowest mean loss, found by successive halving (Jamieson and Talwalkar 2016).

    All are compared on one batch, the better half on twice as many, and so on, until one is left or all batches were seen;
    then the best of the rest wins. Batches add up, so that each is computed once for a number.
    """
    totals = dict.fromkeys(numbers, 0.0)
    seen, wanted = 0, 1
    while True:
        fresh = range(seen, min(wanted, batch_count))
        for number in totals:
            totals[number] += loss(number, fresh) * len(fresh)
        # Of equals the first stays: sorting is stable.
        ranked = sorted(totals, key=lambda number: totals[number])
        seen, wanted = fresh.stop, 2 * wanted
        if seen == batch_count or len(ranked) <= 2:
            return ranked[0]
        totals = {number: totals[number] for number in ranked[: len(ranked) // 2]}
