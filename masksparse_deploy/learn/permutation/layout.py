"""The channels of a network as identities: where each one lies, and which may change places."""

from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.masks import AxisPermutation

__all__ = ["Arrangement", "Channels", "Layout", "ParameterAxis", "new_positions", "orders"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Layout:
    """The channels along one axis of a tensor; along every other axis nothing is reordered.

    Attributes:
        axis: of the tensor.
        channels: int64 (length of the axis,), the channel at each position.
        copies: int64 (length of the axis,), tells the positions of one channel apart: after height and width were flattened
            into the axis, the place in the image; else 0.
    """

    axis: int
    channels: Integers
    copies: Integers

    def __len__(self) -> int:
        return self.channels.size

    def moved(self, axis: int) -> "Layout":
        """The same channels along another axis."""
        return replace(self, axis=axis)


@dataclass(frozen=True, eq=False, kw_only=True)
class ParameterAxis:
    """The channels along one axis of a parameter or buffer; see `Layout`."""

    name: str
    axis: int
    channels: Integers
    copies: Integers


@dataclass(frozen=True, eq=False, kw_only=True)
class Arrangement:
    """Which channels lie where in the parameters, and which of them may change places.

    Attributes:
        channel_count: channels are numbered from 0 to this.
        axes: every axis of every parameter and buffer that the network reads.
        segments: int64 arrays, disjoint; channels of one segment may change places with one another, all others stay.
    """

    channel_count: int
    axes: tuple[ParameterAxis, ...]
    segments: tuple[Integers, ...]


class Channels:
    """Gives channels their identities while a network is walked through, and learns which are the same or must stay."""

    def __init__(self) -> None:
        self._parents: list[int] = []
        self._pinned: list[bool] = []
        self._layouts: list[Layout] = []

    def fresh(self, axis: int, length: int) -> Layout:
        """A layout of channels that nothing is known about."""
        first = len(self._parents)
        self._parents.extend(range(first, first + length))
        self._pinned.extend([False] * length)
        return self.place(axis, np.arange(first, first + length), np.zeros(length, np.int64))

    def fixed(self, axis: int, length: int) -> Layout:
        """A layout of channels that stay where they are."""
        layout = self.fresh(axis, length)
        self.pin(layout)
        return layout

    def place(self, axis: int, channels: Integers, copies: Integers) -> Layout:
        """A layout of known channels. Whatever the new order is, the same channels will lie along this axis."""
        layout = Layout(axis=axis, channels=channels, copies=copies)
        self._layouts.append(layout)
        return layout

    def part(self, layout: Layout, chosen: slice) -> Layout:
        """The layout of a part of the axis."""
        return self.place(layout.axis, layout.channels[chosen], layout.copies[chosen])

    def pin(self, layout: Layout) -> None:
        """The channels of the layout stay where they are."""
        for channel in layout.channels.tolist():
            self._pinned[self._root(channel)] = True

    def unify(self, first: Layout, second: Layout) -> None:
        """Position by position, both layouts hold the same channels, as in a sum; their axes do not matter."""
        if len(first) != len(second) or not np.array_equal(first.copies, second.copies):
            self.pin(first)
            self.pin(second)
            return
        differing = first.channels != second.channels
        for one, other in zip(first.channels[differing].tolist(), second.channels[differing].tolist(), strict=True):
            kept, merged = sorted((self._root(one), self._root(other)))
            self._parents[merged] = kept
            self._pinned[kept] = self._pinned[kept] or self._pinned[merged]

    def arrange(self, readings: dict[tuple[str, int], Layout]) -> Arrangement:
        """What follows from everything that was learned.

        Channels may change places if they lie in the same layouts, once in each: then every layout holds the same channels
        after the change, so every operation on it still meets what it met before.

        Args:
            readings: the layout along each (parameter, axis).
        """
        roots = np.array([self._root(channel) for channel in range(len(self._parents))], np.int64)
        pinned = np.array(self._pinned, np.bool_)[roots] if roots.size else np.zeros(0, np.bool_)
        memberships: dict[int, list[tuple[int, int]]] = defaultdict(list)
        distinct = {(roots[layout.channels].tobytes(), layout.copies.tobytes()): layout for layout in self._layouts}
        for number, layout in enumerate(distinct.values()):
            channels = roots[layout.channels]
            for channel, copy in zip(channels.tolist(), layout.copies.tolist(), strict=True):
                memberships[channel].append((number, copy))
        segments: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for channel, places in memberships.items():
            once = len(set(places)) == len(places)
            if once and not pinned[channel]:
                segments[tuple(sorted(places))].append(channel)
        return Arrangement(
            channel_count=len(self._parents),
            axes=tuple(
                ParameterAxis(name=name, axis=axis, channels=roots[layout.channels], copies=layout.copies)
                for (name, axis), layout in sorted(readings.items(), key=lambda reading: reading[0])
            ),
            segments=tuple(np.array(sorted(channels), np.int64) for channels in segments.values() if len(channels) > 1),
        )

    def _root(self, channel: int) -> int:
        parents = self._parents
        while parents[channel] != channel:
            parents[channel] = parents[parents[channel]]
            channel = parents[channel]
        return channel


def new_positions(axis: ParameterAxis, sources: Integers) -> Integers:
    """The order of an axis: position i receives what was at position result[i].

    Args:
        axis: of a parameter.
        sources: int64 (channel_count,): the place of channel c goes to channel sources[c].
    """
    moving = sources[axis.channels] != axis.channels
    order = np.arange(axis.channels.size)
    if moving.any():
        stride = int(axis.copies.max()) + 1
        own = axis.channels[moving] * stride + axis.copies[moving]
        wanted = sources[axis.channels[moving]] * stride + axis.copies[moving]
        by_key = np.argsort(own)
        order[moving] = order[moving][by_key[np.searchsorted(own, wanted, sorter=by_key)]]
    return order


def orders(arrangement: Arrangement, sources: Integers) -> tuple[AxisPermutation, ...]:
    """The permutations of parameters that carry out a new order of channels, without those that change nothing.

    Args:
        arrangement: the network's.
        sources: int64 (channel_count,), a permutation within each segment: the place of channel c goes to channel sources[c].
    """
    found = ((axis, new_positions(axis, sources)) for axis in arrangement.axes)
    return tuple(
        AxisPermutation(name=axis.name, axis=axis.axis, order=order)
        for axis, order in found
        if not np.array_equal(order, np.arange(order.size))
    )
