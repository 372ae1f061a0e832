"""From prices that nearly separate what tiles keep to the best choice: shortest augmenting paths, for many tiles at a time.

Prices u_i and v_j that prove nothing yet still say what to keep, every |W_ij| > u_i + v_j, and what to prune, where it is <.
That is the best choice for the numbers of weights that its rows and columns happen to keep. A path through the tile, in turn
keeping one more weight and giving one up, takes these numbers closer to n; with the path that costs least, prices change so
that they stay a proof (successive shortest paths; R. K. Ahuja, T. L. Magnanti, J. B. Orlin, "Network Flows" (1993)). All is
done in whole numbers, so that nothing is rounded.
"""

import numpy as np
import numpy.typing as npt

__all__ = ["LARGEST_MAGNITUDE", "LARGEST_PRICE", "balance"]

Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]

# The largest magnitude and the largest price to start from. All paths together raise a price by at most what one path can cost
# in magnitudes, m 2^48, and what two prices differ by at the start, so that prices stay below 42 * 2^48 with m = 32, and the
# costs of single steps below 85 * 2^48.
LARGEST_MAGNITUDE = 2**48
LARGEST_PRICE = 2**49
# Beyond the cost of any step, and of any path that is taken; twice this, shifted by a line's number of 5 bits, fits 63 bits.
_FAR = 2**56


def balance(tiles: Integers, rows: Integers, columns: Integers, n: int) -> Booleans:
    """Make every row and column keep exactly n, of the largest possible sum.

    Args:
        tiles: magnitudes (m, m, tiles), tiles last, from 0 to `LARGEST_MAGNITUDE`.
        rows: prices (m, tiles), at most `LARGEST_PRICE` in size; changed in place to prices that prove the choice.
        columns: prices (m, tiles), likewise.
        n: to be kept in every row and column.

    Returns:
        keep, bool (m, m, tiles).
    """
    m, _, count = tiles.shape
    surplus = tiles - rows[:, None] - columns
    keep = surplus > 0
    _fill_even(keep, surplus == 0, n)
    result = np.empty(keep.shape, dtype=np.bool_)
    active = np.arange(count)
    while True:
        # How many weights each row has too few, and each column too many: paths lead from what is positive to what is negative.
        excess = np.concatenate([n - keep.sum(axis=1), keep.sum(axis=0) - n])
        done = ~excess.any(axis=0)
        if done.any():
            result[:, :, active[done]] = keep[:, :, done]
            going = ~done
            active, excess = active[going], excess[:, going]
            surplus, keep = surplus[:, :, going], keep[:, :, going]
        if not len(active):
            return result
        distances, parents = _distances(np.abs(surplus), keep, excess > 0)
        to_ends = np.where(excess < 0, distances, _FAR)
        nearest = to_ends.min(axis=0)
        assert (nearest < _FAR).all()  # n in every row and column is possible, so that a path exists
        np.minimum(distances, nearest, out=distances)
        rows[:, active] += distances[:m]
        columns[:, active] -= distances[m:]
        surplus += distances[m:] - distances[:m, None]
        _flip(keep, parents, *_apart(to_ends == nearest, parents))


def _fill_even(keep: Booleans, even: Booleans, n: int) -> None:
    """Keep weights that equal their price, in place, where row and column have too few: one diagonal of the tile at a time."""
    if not even.any():
        return
    m = len(keep)
    in_row, in_column = keep.sum(axis=1), keep.sum(axis=0)
    i = np.arange(m)
    for shift in range(m):
        j = (i + shift) % m
        take = even[i, j] & (in_row < n) & (in_column[j] < n)
        keep[i, j] |= take
        in_row += take
        in_column[j] += take


def _distances(costs: Integers, keep: Booleans, sources: Booleans) -> tuple[Integers, Integers]:
    """The least cost from any source to every row and column, and where the path comes from (Bellman and Ford).

    A path goes from a row to a column through a weight that is not kept, and from a column to a row through one that is.

    Args:
        costs: (m, m, tiles), not negative.
        keep: (m, m, tiles).
        sources: (2 m, tiles), rows before columns.

    Returns:
        distances, int64 (2 m, tiles), `_FAR` where no path leads, and parents, int64 (2 m, tiles): for a row the column before
        it on its path, for a column the row before it, -1 at a source. Only strictly shorter paths replace one, so that
        parents never run in a circle.
    """
    m, _, count = costs.shape
    # The number of the line in the lowest bits of the cost: the smallest sum then says where it comes from.
    lines = np.arange(m, dtype=np.int64)
    bits = int(m - 1).bit_length()
    ahead = np.where(keep, _FAR, costs) << bits
    ahead += lines[:, None, None]
    back = np.where(keep, costs, _FAR) << bits
    back += lines[:, None]
    distances = np.where(sources, 0, _FAR)
    parents = np.full((2 * m, count), -1, dtype=np.int64)
    row_distances, column_distances = distances[:m], distances[m:]
    while True:
        changed = False
        for reached, froms, starts, axis, via in (
            (column_distances, parents[m:], row_distances[:, None], 0, ahead),
            (row_distances, parents[:m], column_distances, 1, back),
        ):
            found = (via + (starts << bits)).min(axis=axis)
            shorter = (found >> bits) < reached
            if shorter.any():
                changed = True
                np.copyto(reached, found >> bits, where=shorter)
                np.copyto(froms, found & (2**bits - 1), where=shorter)
        if not changed:
            return distances, parents


def _apart(ends: Booleans, parents: Integers) -> tuple[Integers, Integers]:
    """Of the nearest ends of each tile (2 m, tiles), one for every source that paths to them start from.

    Paths from different sources share no line, so that all of them can be taken at once; with many equal magnitudes there are
    many. Returns the ends, lines and tiles side by side.
    """
    nodes, count = ends.shape
    m = nodes // 2
    lines = np.arange(nodes)[:, None]
    # To the column before a row and the row before a column, then twice as far with every step; a path has less than 2 m steps.
    start = np.where(parents < 0, lines, np.where(lines < m, parents + m, parents))
    for _ in range(nodes.bit_length()):
        start = np.take_along_axis(start, start, axis=0)
    taken = np.zeros((nodes, count), dtype=np.bool_)
    chosen = np.zeros((nodes, count), dtype=np.bool_)
    tile = np.arange(count)
    for line in np.flatnonzero(ends.any(axis=1)):
        chosen[line] = ends[line] & ~taken[start[line], tile]
        taken[start[line], tile] |= chosen[line]
    node, of_tile = np.nonzero(chosen)
    return node, of_tile


def _flip(keep: Booleans, parents: Integers, node: Integers, tile: Integers) -> None:
    """Follow every path from its end back to its source, keep what was not kept and give up what was, in place.

    Args:
        keep: (m, m, tiles).
        parents: (2 m, tiles), see `_distances`.
        node: the ends of the paths.
        tile: which tile each path runs in.
    """
    m = len(keep)
    while len(tile):
        before = parents[node, tile]
        going = before >= 0
        tile, node, before = tile[going], node[going], before[going]
        is_row = node < m
        row, column = np.where(is_row, node, before), np.where(is_row, before, node - m)
        keep[row, column, tile] = ~keep[row, column, tile]
        node = np.where(is_row, before + m, before)
