"""Two neighbouring order statistics of m values, for long rows of values at once, by comparing and exchanging whole arrays."""

import functools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["nth_and_next_largest"]

# Places a < b to compare so that a gets the larger value, and whether anybody needs what a and what b get.
Comparator = tuple[int, int, bool, bool]


def nth_and_next_largest(
    values: Sequence[npt.NDArray[np.floating]], n: int, *, spare: npt.NDArray[np.floating]
) -> tuple[npt.NDArray[np.floating], npt.NDArray[np.floating]]:
    """The n-th and the (n+1)-th largest of the values at each place, 1 <= n < len(values).

    Args:
        values: arrays of one shape, which are overwritten.
        n: from 1.
        spare: another such array, overwritten too.

    Returns:
        Two of the arrays.
    """
    at = list(values)
    for a, b, larger_needed, smaller_needed in _network(len(at), n):
        if not smaller_needed:
            np.maximum(at[a], at[b], out=at[a])
        elif not larger_needed:
            np.minimum(at[a], at[b], out=at[b])
        else:
            np.minimum(at[a], at[b], out=spare)
            np.maximum(at[a], at[b], out=at[a])
            at[b], spare = spare, at[b]
    return at[n - 1], at[n]


@functools.cache
def _network(size: int, n: int) -> tuple[Comparator, ...]:
    """Batcher's odd-even merge sort of `size` values, largest first, without what places n - 1 and n do not depend on."""
    needed = {n - 1, n}
    network = []
    for a, b in reversed(_merge_sort(size)):
        if a in needed or b in needed:
            network.append((a, b, a in needed, b in needed))
            needed |= {a, b}
    return tuple(reversed(network))


def _merge_sort(size: int) -> list[tuple[int, int]]:
    """The comparators of K. E. Batcher's network (1968); what lies beyond `size` counts as smallest and never moves."""
    full = 1 << (size - 1).bit_length()
    network = []
    run = 1
    while run < full:
        gap = run
        while gap:
            for first in range(gap % run, full - gap, 2 * gap):
                for a in range(first, min(first + gap, full - gap)):
                    if a // (2 * run) == (a + gap) // (2 * run) and a + gap < size:
                        network.append((a, a + gap))
            gap //= 2
        run *= 2
    return network
