"""How many masks a sparsity structure allows: mask diversity, exactly and by the formula of the paper that names it.

I. Hubara et al., "Accelerated Sparse Neural Training" (2021), compare structures by the number of masks that a tensor
of T weights can have. The paper's N counts zeros; here N counts kept weights. All counts are exact integers;
`math.log10` takes integers of any size.
"""

import math
from collections import defaultdict
from functools import lru_cache

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern

__all__ = [
    "block_diversity",
    "count_transposable_tiles",
    "paper_transposable_tiles",
    "pattern_diversity",
    "unstructured_diversity",
]

# 8:16 takes seconds; every larger M takes hundreds of times as long.
LARGEST_COUNTED_M = 16


def unstructured_diversity(weight_count: int, kept_count: int) -> int:
    """C(T, k): masks that keep `kept_count` of `weight_count` weights, wherever they lie."""
    return math.comb(weight_count, kept_count)


def pattern_diversity(pattern: NMPattern, weight_count: int, *, by_paper: bool = False) -> int:
    """Masks of an N:M pattern on a tensor: C(M, N)^(T / M), or the count of one tile ^ (T / M^2) if it is transposable.

    Args:
        pattern: N:M, or transposable.
        weight_count: T, a multiple of M, of M^2 if transposable.
        by_paper: take the paper's formula for transposable tiles, which counts too many; the others are exact in the paper.

    Raises:
        UsageError: T is no such multiple, or exact counting would take too long, see `count_transposable_tiles`.
    """
    unit = pattern.m**2 if pattern.transposable else pattern.m
    if weight_count % unit:
        raise UsageError(f"{weight_count} weights are not a multiple of {unit}, as {pattern} masks need")
    if not pattern.transposable:
        return _power(math.comb(pattern.m, pattern.n), weight_count // unit)
    count = paper_transposable_tiles if by_paper else count_transposable_tiles
    return _power(count(pattern.n, pattern.m), weight_count // unit)


def block_diversity(out_channels: int, in_channels: int, *, block: int, kept: int) -> int:
    """C(in_channels, kept)^(out_channels / block): uniform 1xN blocks, N = `block` output channels that keep the same inputs.

    Every group of N consecutive output channels keeps `kept` input channels (Xiang et al. 2023, "SUBP"); the places in the
    kernel go along, so that they add no choice.

    Raises:
        UsageError: `out_channels` is no multiple of `block`.
    """
    if out_channels % block:
        raise UsageError(f"{out_channels} output channels are not a multiple of the block of {block}")
    return _power(math.comb(in_channels, kept), out_channels // block)


def paper_transposable_tiles(n: int, m: int) -> int:
    """M! (M-1)! ... (M-z+1)! with z = M - N zeros in a row: what the paper takes for the number of transposable tiles.

    It places one zero in every row and column, M! ways, then another one as if M - 1 columns were left in each row, and so on.
    The same mask is reached in many orders, so that for z > 1 it counts too many: 144 instead of 90 tiles of 2:4.
    """
    return math.prod(math.factorial(m - placed) for placed in range(m - n))


@lru_cache(maxsize=64)
def count_transposable_tiles(n: int, m: int) -> int:
    """The number of M x M matrices of zeros and ones with N ones in every row and in every column, exactly.

    Row by row: how many ways lead to a vector of column sums depends on how many columns have each sum, not on which. The
    upper half of the rows is counted so; the lower half has to fill up each vector to N, and is counted in the same way.

    Args:
        n: ones in each row and column.
        m: rows and columns, at most 16.

    Raises:
        UsageError: `m` is larger, or `n` does not fit.
    """
    pattern = NMPattern(n=n, m=m)
    if m > LARGEST_COUNTED_M:
        raise UsageError(
            f"exact counts of transposable tiles go up to M = {LARGEST_COUNTED_M}, as they take hundreds of times as long with "
            f"every doubling; {pattern.n}:{pattern.m} has no exact count here"
        )
    upper, lower = _column_sums(n, m, m // 2), _column_sums(n, m, m - m // 2)
    # The lower half has to add N - s to a column of sum s: the same classes from the other end.
    return sum(_arrangements(sizes) * ways * lower.get(sizes[::-1], 0) for sizes, ways in upper.items())


def _column_sums(n: int, m: int, rows: int) -> dict[tuple[int, ...], int]:
    """How `rows` rows of N ones can sum up over M columns.

    Returns:
        How many columns have the sums 0, 1, ..., N -> in how many ways the rows lead to one such vector; in equally many
        to the same sums in another order.
    """
    reached = {(m,) + (0,) * n: 1}
    for _ in range(rows):
        # Counted from all vectors that they come from, to all orders of what comes out.
        following = _one_more_row({sizes: ways * _arrangements(sizes) for sizes, ways in reached.items()}, n)
        reached = {sizes: total // _arrangements(sizes) for sizes, total in following.items()}
    return reached


def _one_more_row(reached: dict[tuple[int, ...], int], n: int) -> dict[tuple[int, ...], int]:
    """The classes of columns, and the ways to them, when N columns go up by one, none beyond the sum N."""
    # Class by class, so that what is the same from there on is counted once: columns that came up from the class before, and
    # columns that have yet to go up.
    states = {(sizes, 0, n): ways for sizes, ways in reached.items()}
    for value in range(n):
        following: defaultdict[tuple[tuple[int, ...], int, int], int] = defaultdict(int)
        for (sizes, came, left), ways in states.items():
            size, later = sizes[value], sum(sizes[value + 1 : n])
            for raised in range(max(0, left - later), min(size, left) + 1):
                changed = (*sizes[:value], size - raised + came, *sizes[value + 1 :])
                following[changed, raised, left - raised] += ways * math.comb(size, raised)
        states = following
    reachable: defaultdict[tuple[int, ...], int] = defaultdict(int)
    for (sizes, came, _), ways in states.items():
        reachable[(*sizes[:n], sizes[n] + came)] += ways
    return reachable


def _arrangements(sizes: tuple[int, ...]) -> int:
    """In how many orders columns can stand, of which so many each have the same sum."""
    return math.factorial(sum(sizes)) // math.prod(map(math.factorial, sizes))


def _power(count: int, exponent: int) -> int:
    result: int = count**exponent
    return result
