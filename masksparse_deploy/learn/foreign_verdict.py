"""The verdict on the zeros of a layer, in words."""

import math

from masksparse_deploy.core.artifacts.foreign import Grouping
from masksparse_deploy.learn.groupings import HARDWARE_PATTERN, ZeroGroups

__all__ = ["explain_zeros"]


def explain_zeros(groups: ZeroGroups, obstacle: str | None, shape: tuple[int, ...]) -> str:
    """Which pattern the zeros of a layer follow, and why they cannot be used where they cannot.

    Args:
        groups: what was found.
        obstacle: why the layer cannot carry a mask, whatever its zeros are; None if it can.
        shape: of the weight.
    """
    if groups.zeros == "dense":
        return f"no zeros; {obstacle}" if obstacle else "no zeros"
    if groups.zeros == "unstructured":
        best = max(groups.groupings, key=_share, default=None)
        nearest = f": {_broken(best)} along {_words(best, shape)}" if best is not None else ""
        also = f"; {obstacle}" if obstacle else ""
        return f"zeros without a pattern that sparse kernels read{nearest}{also}"
    here = next(entry for entry in groups.groupings if entry.convention == groups.zeros)
    along = f"{groups.pattern}, groups run along {_words(here, shape)}"
    if obstacle:
        return f"{along}; not usable: {obstacle}"
    if groups.zeros == "input channels":
        return along if groups.suits_hardware else f"{along}; not usable: sparse kernels read {HARDWARE_PATTERN} only"
    needed = next((entry for entry in groups.groupings if entry.convention == "input channels"), None)
    broken = f": {_broken(needed)} along input channels" if needed is not None else ""
    kind = f"{'x'.join(map(str, shape[2:]))} kernels" if len(shape) > 2 else "weights"
    return f"{along}; on {shape[0]}x{shape[1]} {kind} not usable{broken}"


def _words(grouping: Grouping, shape: tuple[int, ...]) -> str:
    if grouping.convention == "kernel taps" and math.prod(shape[2:]) == 1:
        return "rows that run on into the next one"
    if grouping.convention == "channels last":
        return "channels-last rows that run on into the next kernel position"
    return grouping.convention


def _share(grouping: Grouping) -> float:
    return grouping.conforming_count / grouping.group_count


def _broken(grouping: Grouping) -> str:
    broken = grouping.group_count - grouping.conforming_count
    return (
        f"{broken:,} of {grouping.group_count:,} groups ({100 * broken / grouping.group_count:.3g} %) break {grouping.pattern}"
    )
