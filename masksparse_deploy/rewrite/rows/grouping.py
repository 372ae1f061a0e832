"""Which positions of a masked convolution share a matrix product, so that as few products as possible are with constants.

A window that reaches a masked position, or beyond the image, multiplies part of the weights by a vector that is known
beforehand. Positions whose windows do so at the same taps form a group: its matrix product leaves these taps out, and what
they would add is part of its bias. The kernel's rows are segments with groups of their own, whose sums are added up: three
taps have few combinations, so that groups are large, and almost nothing constant is left in them.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from masksparse_deploy.rewrite.rows.layout import CONSTANT, PADDING

__all__ = ["WHOLE_WINDOWS", "Group", "GroupCosts", "Segment", "plan_groups"]

Indices = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Positions that share a matrix product.

    Attributes:
        members: int64, numbers of positions, ascending.
        taps: the kernel's taps that are multiplied, ascending; empty if there is nothing to compute.
    """

    members: Indices
    taps: tuple[int, ...]


@dataclass(frozen=True, eq=False, kw_only=True)
class Segment:
    """Groups that together hold every position once, over some taps of the kernel."""

    taps: tuple[int, ...]
    groups: tuple[Group, ...]


@dataclass(frozen=True, kw_only=True)
class GroupCosts:
    """What a group costs, in multiply-accumulates that take as long; it decides between equal functions only.

    Measured with ONNX Runtime 1.31 on an AVX-512 processor (57 multiply-accumulates in a nanosecond on one thread), in a whole
    ResNet-18, whose weights do not stay in the caches.

    Attributes:
        rows_of_weights: reading the weights costs as much as so many rows of the product.
        operators: the fixed cost of the group's operators, 18 microseconds.
        gathered: copying one number of an input.
        added: adding one number of a product to where it belongs, where there are several segments.
        cached_bytes: a gathered matrix of at most this size is still in the processor's cache when it is multiplied.
        can_add: whether the runtime has operators to add products up, so that there may be several segments.
    """

    rows_of_weights: float = 80
    operators: float = 1e6
    gathered: float = 25
    added: float = 40
    cached_bytes: int = 2 << 20
    can_add: bool = True

    def of_groups(self, members: Floats, taps: Floats, channels: tuple[int, int], *, is_added: bool) -> Floats:
        """The cost of groups with so many members and taps, of a convolution with these channels, in and out."""
        products = (members + self.rows_of_weights) * math.prod(channels)
        added = self.added * members * channels[1] if is_added else 0.0
        return np.where(taps > 0, taps * (products + self.gathered * members * channels[0]) + added + self.operators, 0)


# Weights so dear to read that windows are multiplied as a whole, constants included.
WHOLE_WINDOWS = GroupCosts(rows_of_weights=1e9, can_add=False)

# More kinds of windows than these are not compared pair by pair; the rarest are computed in full instead.
_MOST_KINDS = 512


def plan_groups(
    windows: Indices, *, kernel_width: int, in_channels: int, out_channels: int, costs: GroupCosts
) -> tuple[Segment, ...]:
    """Choose segments and groups for a convolution: segments of all taps, of a kernel row or of one tap, whichever cost least.

    Args:
        windows: int64 (positions, taps) as `window_rows` gives them. CONSTANT and PADDING may be left out of products.
        kernel_width: taps in a row of the kernel.
        in_channels: of the convolution.
        out_channels: of the convolution.
        costs: what operators cost.
    """
    tap_count = windows.shape[1]
    every_tap = tuple(range(tap_count))
    lengths = sorted({1, kernel_width, tap_count}) if costs.can_add else [tap_count]
    options = [tuple(every_tap[start : start + length] for start in range(0, tap_count, length)) for length in lengths]
    plans = []
    for option in options:
        merged = [
            _merged(windows[:, list(taps)], (in_channels, out_channels), costs, is_added=len(option) > 1) for taps in option
        ]
        plans.append((sum(cost for _, cost in merged), zip(option, (groups for groups, _ in merged), strict=True)))
    _, best = min(plans, key=lambda plan: plan[0])
    return tuple(
        Segment(
            taps=taps,
            groups=tuple(
                Group(members=part, taps=tuple(taps[tap] for tap in np.flatnonzero(live)))
                for members, live in groups
                for part in _parts(members, 4 * in_channels * int(live.sum()), costs.cached_bytes)
            ),
        )
        for taps, groups in best
    )


def _parts(members: Indices, row_bytes: int, at_most: int) -> list[Indices]:
    """Members in parts of at most so many bytes, as equal as can be."""
    return np.array_split(members, -(-len(members) // max(at_most // max(row_bytes, 1), 1)))


def _merged(
    windows: Indices, channels: tuple[int, int], costs: GroupCosts, *, is_added: bool
) -> tuple[list[tuple[Indices, npt.NDArray[np.bool_]]], float]:
    """Groups (members, taps multiplied) over some taps, and their cost: the pair that saves most is joined until none saves."""
    kinds = np.where((windows == CONSTANT) | (windows == PADDING), windows, 0)
    if len(np.unique(kinds, axis=0)) > _MOST_KINDS:
        kinds = _common(kinds)
    kind, kind_of, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    kind_of = kind_of.reshape(-1)
    live, members = kind == 0, counts.astype(np.float64)
    present = np.ones(len(kind), dtype=np.bool_)
    group_of = np.arange(len(kind))

    def cost(members: Floats, taps: Floats) -> Floats:
        return costs.of_groups(members, taps, channels, is_added=is_added)

    def savings(one: int) -> Floats:
        together = live | live[one] | (kind != kind[one])
        alone = cost(members, live.sum(axis=1))
        saved = alone + alone[one] - cost(members + members[one], together.sum(axis=1))
        return np.where(present & (np.arange(len(kind)) != one), saved, -np.inf)

    table = np.stack([savings(one) for one in range(len(kind))])
    while table.max() > 0:
        one, other = divmod(int(table.argmax()), len(kind))
        live[one] |= live[other] | (kind[one] != kind[other])
        members[one] += members[other]
        present[other] = False
        group_of[group_of == other] = one
        table[one] = table[:, one] = savings(one)
        table[other] = table[:, other] = -np.inf
    total = float(cost(members, live.sum(axis=1))[present].sum())
    order = np.argsort(group_of[kind_of], kind="stable")
    bounds = np.flatnonzero(np.diff(group_of[kind_of][order])) + 1
    groups = [order[start:end] for start, end in pairwise([0, *bounds.tolist(), len(order)])]
    return [(group, live[group_of[kind_of[group[0]]]]) for group in groups], total


def _common(kinds: Indices) -> Indices:
    """The same with rare kinds of windows computed in full."""
    kind, kind_of, counts = np.unique(kinds, axis=0, return_inverse=True, return_counts=True)
    rare = np.argsort(-counts, kind="stable")[_MOST_KINDS - 1 :]
    kind[rare] = 0
    return kind[kind_of.reshape(-1)]
