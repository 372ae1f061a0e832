"""How the zeros of a weight are grouped: which N:M pattern they follow, and along what."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.foreign import Convention, Grouping, Zeros
from masksparse_deploy.core.groups import count_kept
from masksparse_deploy.core.patterns import NMPattern

__all__ = ["HARDWARE_PATTERN", "ZeroGroups", "find_groups"]

# What sparse tensor cores multiply by.
HARDWARE_PATTERN = NMPattern(n=2, m=4)
# Larger groups are nobody's convention, and the more are tried, the more fit by chance.
_LARGEST_M = 16
# Fewer groups than this have something in common by chance.
_TELLING_COUNT = 16

Kept = npt.NDArray[np.bool_]
Counts = npt.NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class ZeroGroups:
    """What was found in one weight.

    Attributes:
        zeros: along what the groups run; "unstructured" if no pattern fits, "dense" if nothing is dropped.
        pattern: the one that fits, None if none does.
        groupings: for each way to cut the weight into groups, how many conform to the pattern in question.
        suits_hardware: every 4 consecutive input channels keep at most 2.
    """

    zeros: Zeros
    pattern: NMPattern | None
    groupings: tuple[Grouping, ...]
    suits_hardware: bool


def find_groups(kept: Kept, *, input_axis: int, asked: NMPattern | None = None) -> ZeroGroups:
    """Find the pattern that the zeros of a weight follow.

    Tried are, in this order: 2:4 (named 1:4 where no group keeps more than one), then the other N:M with M <= 16, the lowest
    density first. Of these others, one counts as found only if most of its groups keep exactly N: among many M, some N below
    M fits unstructured zeros by chance. Each is tried along the input channels, the output channels, and in the two orders
    of memory. Groups may keep fewer than N everywhere.

    Args:
        kept: bool, (out_channels, in_channels, kernel_h, kernel_w), or with more or no kernel axes; False is a zero.
        input_axis: the axis of the input channels: 1, but 0 for a transposed convolution.
        asked: try only this pattern.
    """
    suits_hardware = _fits(_counts(kept, "input channels", HARDWARE_PATTERN.m, input_axis), HARDWARE_PATTERN)
    first = asked or HARDWARE_PATTERN
    groupings = _groupings(kept, first, input_axis)
    if kept.all():
        return ZeroGroups(zeros="dense", pattern=None, groupings=groupings, suits_hardware=False)
    fitting = next((entry.convention for entry in groupings if entry.conforming_count == entry.group_count), None)
    if fitting is not None:
        pattern = first if asked else _narrowest(kept, fitting, input_axis)
        return ZeroGroups(zeros=fitting, pattern=pattern, groupings=groupings, suits_hardware=suits_hardware)
    other = None if asked else _other_pattern(kept, input_axis)
    if other is None:
        return ZeroGroups(zeros="unstructured", pattern=None, groupings=groupings, suits_hardware=suits_hardware)
    convention, pattern = other
    groupings = _groupings(kept, pattern, input_axis)
    return ZeroGroups(zeros=convention, pattern=pattern, groupings=groupings, suits_hardware=suits_hardware)


def _conventions(kept: Kept, m: int, input_axis: int) -> Iterator[Convention]:
    """The ways to cut a weight into groups of `m` that its shape allows and that differ from one another."""
    taps = int(np.prod(kept.shape[2:]))
    straddling = kept.shape[input_axis] % m != 0
    if not straddling:
        yield "input channels"
    if kept.shape[1 - input_axis] % m == 0:
        yield "output channels"
    if kept.size % m == 0:
        # Without kernel positions both orders of memory are the same, and where no group straddles rows also input channels.
        if taps > 1 or straddling:
            yield "kernel taps"
        if taps > 1 and straddling:
            yield "channels last"


def _counts(kept: Kept, convention: Convention, m: int, input_axis: int) -> Counts:
    """How many weights each group keeps, any shape; empty if the shape allows no such groups."""
    if convention in ("input channels", "output channels"):
        axis = input_axis if convention == "input channels" else 1 - input_axis
        if kept.shape[axis] == 0 or kept.shape[axis] % m:
            return np.zeros(0, dtype=np.uint8)
        return count_kept(kept, axis=axis, size=m)
    ordered = np.moveaxis(kept, 1, -1) if convention == "channels last" else kept
    return count_kept(ordered.reshape(-1), axis=0, size=m)


def _fits(counts: Counts, pattern: NMPattern) -> bool:
    return counts.size > 0 and not bool((counts > pattern.n).any())


def _groupings(kept: Kept, pattern: NMPattern, input_axis: int) -> tuple[Grouping, ...]:
    found = []
    for convention in _conventions(kept, pattern.m, input_axis):
        counts = _counts(kept, convention, pattern.m, input_axis)
        conforming = int((counts <= pattern.n).sum())
        found.append(
            Grouping(convention=convention, pattern=str(pattern), group_count=counts.size, conforming_count=conforming)
        )
    return tuple(found)


def _narrowest(kept: Kept, convention: Convention, input_axis: int) -> NMPattern:
    """The smallest N with which groups of four fit; 1 for a weight that is all zero."""
    counts = _counts(kept, convention, HARDWARE_PATTERN.m, input_axis)
    return NMPattern(n=max(1, int(counts.max())), m=HARDWARE_PATTERN.m)


def _other_pattern(kept: Kept, input_axis: int) -> tuple[Convention, NMPattern] | None:
    found: list[tuple[Convention, NMPattern]] = []
    for m in range(2, _LARGEST_M + 1):
        for convention in _conventions(kept, m, input_axis):
            counts = _counts(kept, convention, m, input_axis)
            n = int(counts.max())
            if 0 < n < m and counts.size >= _TELLING_COUNT and 2 * int((counts == n).sum()) > counts.size:
                found.append((convention, NMPattern(n=n, m=m)))
    # Of equal densities the first one has the smallest groups.
    return min(found, key=lambda entry: entry[1].density, default=None)
