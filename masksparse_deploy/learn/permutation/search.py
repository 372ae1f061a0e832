"""Which order of channels keeps most magnitude under an N:M pattern: exchanges between groups, until none brings more.

The objective and the exchanges are those of J. Pool, C. Yu, "Channel Permutations for N:M Sparsity" (2021).
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.learn.permutation.layout import Arrangement, ParameterAxis, new_positions

__all__ = ["Consumer", "kept_share", "search_orders"]

Integers = npt.NDArray[np.int64]
# The channels of a segment, sorted by the group of M positions that they share in a consumer.
Cells = tuple[tuple[int, ...], ...]

_LARGEST_SWEEPS = 12
# A gain below this share of a channel's magnitude is within what float32 sums of some thousand terms may be wrong by.
_SMALLEST_GAIN = 2e-4
# Weights that are worked on at once: few enough to stay in the processor's cache.
_BLOCK = 2**18


@dataclass(frozen=True, eq=False, kw_only=True)
class Consumer:
    """A layer to be masked, as the search sees it.

    Attributes:
        axis: the input channels of its weight.
        magnitude: float32 (in_channels, out_channels * kernel_h * kernel_w), |weight|, scaled so that the sum is 1; with
            rows of zeros up to a multiple of M, which stay at the end.
    """

    axis: ParameterAxis
    magnitude: torch.Tensor


def kept_share(consumer: Consumer, pattern: NMPattern, sources: Integers) -> float:
    """The share of the layer's magnitude that its N largest weights of every group hold, in a given order of channels."""
    missing = np.arange(consumer.axis.channels.size, len(consumer.magnitude))
    arranged = consumer.magnitude[torch.from_numpy(np.concatenate([new_positions(consumer.axis, sources), missing]))]
    groups = arranged.reshape(-1, pattern.m, arranged.shape[1]).double()
    return float(sum(row.sum() for row in _largest(groups, pattern.n)))


def search_orders(
    arrangement: Arrangement, consumers: Sequence[Consumer], pattern: NMPattern, *, seed: int, progress: Progress
) -> Integers:
    """Find an order of channels under which the layers keep more magnitude, each layer's share counted alike.

    Segment by segment, channels are exchanged between groups. In a sweep every two groups meet once, as in a round-robin
    tournament, and make the exchange that brings most. The search ends with a sweep that changes nothing: then no single
    exchange brings more than rounding does. The order of a segment that ends below its beginning, counted in float64, is not
    taken.

    Args:
        arrangement: the network's.
        consumers: the layers to be masked.
        pattern: N:M.
        seed: of the order in which groups meet.
        progress: told after each sweep.

    Returns:
        sources, int64 (channel_count,): the place of channel c goes to channel sources[c].
    """
    generator = np.random.default_rng(seed)
    sources = np.arange(arrangement.channel_count)
    for number, segment in enumerate(arrangement.segments):
        total = _LARGEST_SWEEPS * len(arrangement.segments)
        progress("reordering channels", number * _LARGEST_SWEEPS, total)
        touched = [consumer for consumer in consumers if segment[0] in consumer.axis.channels]
        cells, followed = _cells(segment, touched, pattern.m)
        if len(cells) < 2:
            continue
        tournament = _Tournament(cells, followed, pattern)
        for sweep in range(_LARGEST_SWEEPS):
            if not tournament.sweep(generator):
                break
            progress("reordering channels", number * _LARGEST_SWEEPS + sweep + 1, total)
        found = sources.copy()
        places, channels = tournament.exchanged()
        found[places] = channels
        before, after = (sum(kept_share(consumer, pattern, order) for consumer in touched) for order in (sources, found))
        if after > before:
            sources = found
    progress("reordering channels", 1, 1)
    return sources


def _cells(segment: Integers, consumers: Sequence[Consumer], m: int) -> tuple[Cells, list[Consumer]]:
    """How the layers sort the channels of a segment into groups, and which layers agree on that.

    Layers that sort them otherwise, or where a channel takes several positions, are not followed in the search.
    """
    sorted_by = {}
    for consumer in consumers:
        positions = np.flatnonzero(np.isin(consumer.axis.channels, segment))
        if len(positions) == len(segment):
            channels = consumer.axis.channels[positions]
            groups = (channels[positions // m == group] for group in np.unique(positions // m))
            sorted_by[consumer] = tuple(sorted(tuple(sorted(group.tolist())) for group in groups))
    if not sorted_by:
        return (), []
    cells = Counter(sorted_by.values()).most_common(1)[0][0]
    return cells, [consumer for consumer, found in sorted_by.items() if found == cells]


class _Tournament:
    """The groups of one segment with all layers that follow it side by side, and what each group holds.

    `rows`: (groups, M, width), the magnitudes at each place; where a cell has less than M channels, the rest of the group
    belongs to other segments and cannot move. With N < M, replacing place i of a group by a row x changes what is kept by
    `base[i] + sum(max(0, x - limit[i]))`, where `limit[i]` is the N-th largest of the other places and `base[i]` what an empty
    place i would lose.
    """

    def __init__(self, cells: Cells, consumers: Sequence[Consumer], pattern: NMPattern) -> None:
        self.pattern = pattern
        self.rows = torch.cat([_places(cells, consumer, pattern.m) for consumer in consumers], 2)
        lengths = np.array([len(cell) for cell in cells])
        self.movable = torch.from_numpy(np.arange(pattern.m) < lengths[:, None])
        self.places = np.array([(*cell, *([-1] * (pattern.m - len(cell)))) for cell in cells], np.int64)
        self.held = torch.from_numpy(self.places.copy())
        self.mass = self.rows.sum(2)
        self.smallest_gain = _SMALLEST_GAIN * float(self.mass.mean())
        self.limit, self.base = self._limits(self.rows)
        self.limit_mass = self.limit.sum(2)
        # Two groups that met, and were not changed since, need not meet again.
        self.clock = 0
        self.changed = np.zeros(len(cells), np.int64)
        self.met = np.full((len(cells), len(cells)), -1)

    def exchanged(self) -> tuple[Integers, Integers]:
        """Channels, and for each the channel that came to its place."""
        own = self.movable.numpy()
        return self.places[own], self.held.numpy()[own]

    def sweep(self, generator: np.random.Generator) -> bool:
        """Every two groups meet once; tells whether anything was exchanged."""
        circle = generator.permutation(len(self.rows))
        if len(circle) % 2:
            circle = np.append(circle, -1)
        half = len(circle) // 2
        start = self.clock
        for _ in range(len(circle) - 1):
            self.clock += 1
            left, right = circle[:half], circle[half:][::-1]
            due = np.maximum(self.changed[left], self.changed[right]) >= self.met[left, right]
            due &= (left >= 0) & (right >= 0)
            left, right = left[due], right[due]
            self.met[left, right] = self.met[right, left] = self.clock
            size = max(1, _BLOCK // self.rows[0].numel())
            for first in range(0, len(left), size):
                self._meet(left[first : first + size], right[first : first + size])
            # The first stays, all others move on by one.
            circle = np.concatenate([circle[:1], circle[-1:], circle[1:-1]])
        return bool((self.changed > start).any())

    def _meet(self, one: Integers, other: Integers) -> None:
        """Make the best exchange between the groups of every pair, if it brings anything."""
        left, right = torch.from_numpy(one), torch.from_numpy(other)
        # Axes of the gains: pair, place in the left group, place in the right group.
        gain = self._gains(left, right) + self._gains(right, left).transpose(1, 2)
        gain.masked_fill_(~(self.movable[left][:, :, None] & self.movable[right][:, None, :]), -torch.inf)
        best, where = gain.flatten(1).max(1)
        chosen = torch.nonzero(best > self.smallest_gain)[:, 0]
        if not len(chosen):
            return
        left, right, where = left[chosen], right[chosen], where[chosen]
        left_place, right_place = where // self.pattern.m, where % self.pattern.m
        for tensor in (self.rows, self.mass, self.held):
            moved = tensor[left, left_place]
            tensor[left, left_place] = tensor[right, right_place]
            tensor[right, right_place] = moved
        groups = torch.cat([left, right])
        self.limit[groups], self.base[groups] = self._limits(self.rows[groups])
        self.limit_mass[groups] = self.limit[groups].sum(2)
        self.changed[groups.numpy()] = self.clock

    def _gains(self, into: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """What replacing place i of a group by row j of its partner brings: (pairs, i, j)."""
        # max(0, x - limit) is half of (x - limit) + |x - limit|.
        distance = torch.cdist(self.limit[into], self.rows[source], p=1.0)
        difference = self.mass[source][:, None, :] - self.limit_mass[into][:, :, None]
        return self.base[into][:, :, None] + (difference + distance) / 2

    def _limits(self, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        *_, last_kept, first_lost = _largest(groups, self.pattern.n + 1)
        last_kept, first_lost = last_kept[:, None], first_lost[:, None]
        kept = groups >= last_kept
        base = torch.where(kept, first_lost - groups, 0).sum(2)
        return torch.where(kept, first_lost, last_kept), base


def _places(cells: Cells, consumer: Consumer, m: int) -> torch.Tensor:
    """The magnitudes of a layer at the places of every cell, then those of the rest of the group: (cells, M, width)."""
    position_of = {channel: position for position, channel in enumerate(consumer.axis.channels.tolist())}
    places = []
    for cell in cells:
        own = [position_of[channel] for channel in cell]
        first = own[0] // m * m
        places.append(own + [position for position in range(first, first + m) if position not in own])
    return consumer.magnitude[torch.tensor(places)]


def _largest(groups: torch.Tensor, count: int) -> list[torch.Tensor]:
    """The `count` largest along axis 1, largest first, each (groups, width); faster than sorting short columns."""
    found: list[torch.Tensor] = []
    for row in groups.unbind(1):
        remaining = row
        for index, larger in enumerate(found):
            found[index], remaining = torch.maximum(larger, remaining), torch.minimum(larger, remaining)
        if len(found) < count:
            found.append(remaining)
    return found
