"""The best tile as a minimum-cost flow, tile by tile, by the solver of OR-tools: slow, and independent of our own."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.optional import require

__all__ = ["best_tiles_by_flow"]

# Magnitudes become whole numbers up to 2^40; times the number of nodes, which the solver scales costs by, they fit in 63 bits.
_SCALE_BITS = 40


def best_tiles_by_flow(magnitudes: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.bool_]:
    """The admissible tile that keeps the largest sum of magnitudes, rounded to whole numbers.

    Source -> rows (capacity n) -> columns (capacity 1, cost -magnitude) -> sink (capacity n), with the source and the sink
    taken into the rows and columns as supplies: the problem of Hubara et al. (2021). With 2^e the power of two above the
    tile's largest magnitude, every one is first rounded to a multiple of 2^(e-40): the sum kept is less than the best by at
    most 2 n m 2^(e-41).

    Args:
        magnitudes: (tiles, m, m), not negative.
        n: kept in every row and column.

    Returns:
        keep, bool (tiles, m, m).

    Raises:
        MachineError: OR-tools is not installed.
    """
    min_cost_flow = require("ortools.graph.python.min_cost_flow", needed_for="transposable masks by minimum-cost flow")
    m = magnitudes.shape[-1]
    rows, columns = (index.ravel().astype(np.int32) for index in np.indices((m, m)))
    ones = np.ones(m * m, dtype=np.int64)
    nodes, supplies = np.arange(2 * m, dtype=np.int32), np.repeat([n, -n], m).astype(np.int64)
    keep = np.empty(magnitudes.shape, dtype=np.bool_)
    for tile, costs in enumerate(-whole_numbers(magnitudes, _SCALE_BITS).reshape(len(magnitudes), -1)):
        solver = min_cost_flow.SimpleMinCostFlow()
        arcs = solver.add_arcs_with_capacity_and_unit_cost(rows, columns + np.int32(m), ones, costs)
        solver.set_nodes_supplies(nodes, supplies)
        status = solver.solve()
        assert status == solver.OPTIMAL, f"tile {tile}: {status}"  # a flow of n everywhere exists for every n <= m
        keep[tile] = solver.flows(arcs).reshape(m, m) > 0
    return keep


def whole_numbers(magnitudes: npt.NDArray[np.floating], bits: int) -> npt.NDArray[np.int64]:
    """Each tile times the power of two that brings its largest magnitude into [2^(bits-1), 2^bits), rounded to integers."""
    _, exponents = np.frexp(magnitudes.max(axis=(1, 2), keepdims=True))
    scaled: npt.NDArray[np.float64] = np.ldexp(magnitudes.astype(np.float64), bits - exponents)
    return np.rint(scaled).astype(np.int64)
