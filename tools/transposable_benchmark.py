"""How fast the solvers of transposable masks are, and how much magnitude they keep.

    OMP_NUM_THREADS=1 python -m tools.transposable_benchmark --weights 25000000

prints a table for each pattern. The first row is the exact solver on all weights, from the weights to the mask; the other rows
are all solvers on the first of them (`--compared`): processor and wall time for each tile, how many times as fast as OR-tools
tile by tile in the same run (processor time), how much magnitude is lost against the exact solver, and how many tiles keep
less than N in some row or column. `--file` takes the convolutions of a .safetensors file instead of random weights.

PyTorch's `_sparse_semi_structured_tile` runs on CUDA only. What it keeps is shown for the Python code that PyTorch gives as its
equivalent, on a few tiles; its time is not.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.transposable.enumeration import LARGEST_M
from masksparse_deploy.learn.transposable.greedy import keep_greedily
from masksparse_deploy.learn.transposable.solve import Solver, solve_tiles, transposable_mask
from masksparse_deploy.learn.transposable.tiles import tiles_of

__all__ = ["Row", "kernels_of", "main", "measure", "random_kernels"]

Floats = npt.NDArray[np.floating]
Booleans = npt.NDArray[np.bool_]

PATTERNS = ("T2:4", "T4:8", "T8:16", "T16:32")
PYTORCH_TILES = 200


@dataclass(frozen=True, kw_only=True)
class Row:
    """What one solver did on some tiles; `cpu_us` and `wall_us` are for each tile, None where nothing was timed."""

    name: str
    tile_count: int
    cpu_us: float | None
    wall_us: float | None
    speedup: float | None
    loss: float
    unsaturated: float


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table for each pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=int, default=600_000, help="that the exact solver masks, at least")
    parser.add_argument("--compared", type=int, default=300_000, help="of these, that all solvers are compared on")
    parser.add_argument(
        "--runs", type=int, default=3, help="of each solver, of which the shortest counts; the first row has one"
    )
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="TN:M")
    parser.add_argument("--file", type=Path, help="a .safetensors file with convolutions")
    options = parser.parse_args(arguments)
    for pattern in map(NMPattern.parse, options.patterns):
        kernels = kernels_of(options.file, pattern) if options.file else random_kernels(options.weights)
        cpu_s, wall_s = _shortest(partial(_mask, kernels, pattern), runs=1)[1:]
        count = sum(kernel.size for kernel in kernels)
        print(f"\n{pattern}: {count:,} weights exactly: {cpu_s:.2f} s processor, {wall_s:.2f} s wall time\n")
        print("| solver | tiles | processor, us a tile | wall, us a tile | times as fast as OR-tools | loss | not saturated |")
        print("|---|---|---|---|---|---|---|")
        for row in measure(_first_tiles(kernels, pattern.m, options.compared), pattern.n, runs=options.runs):
            times = [_text(row.cpu_us), _text(row.wall_us), _text(row.speedup)]
            print(f"| {' | '.join([row.name, f'{row.tile_count:,}', *times, f'{row.loss:.4%}', f'{row.unsaturated:.2%}'])} |")
    return 0


def random_kernels(weight_count: int) -> list[npt.NDArray[np.float32]]:
    """Normal weights of 3 x 3 convolutions with 256 channels in and out, or with 64 if fewer are asked for; float32."""
    channels = 256 if weight_count >= 9 * 256**2 else 64
    generator = np.random.default_rng(0)
    shape = (channels, channels, 3, 3)
    return [generator.standard_normal(shape, dtype=np.float32) for _ in range(-(-weight_count // (9 * channels**2)))]


def kernels_of(path: Path, pattern: NMPattern) -> list[npt.NDArray[Any]]:
    """The convolution kernels in a file whose channels are multiples of M."""
    arrays = load_file(path).values()
    return [array for array in arrays if array.ndim == 4 and not any(size % pattern.m for size in array.shape[:2])]


def measure(tiles: Floats, n: int, *, runs: int) -> list[Row]:
    """One row for each solver, OR-tools first."""
    m = tiles.shape[-1]
    names: tuple[Solver, ...] = ("flow", "exact", "enumeration", "entropy", "greedy", "two-approximation")

    def keep_by(solver: Solver) -> Booleans:
        return solve_tiles(tiles, n, solver=solver).keep

    choices = {name: partial(keep_by, name) for name in names if name != "enumeration" or m <= LARGEST_M}
    timed: dict[str, tuple[Booleans, float, float]] = {name: _shortest(choose, runs=runs) for name, choose in choices.items()}
    timed["greedy, without swaps"] = _shortest(lambda: keep_greedily(tiles, n), runs=runs)
    best = timed["exact"][0]
    rows = []
    for name, (keep, cpu_s, wall_s) in timed.items():
        speedup, to_us = timed["flow"][1] / cpu_s, 1e6 / len(tiles)
        rows.append(_row(name, tiles, keep, best, n, cpu_us=cpu_s * to_us, wall_us=wall_s * to_us, speedup=speedup))
    if (n, m) == (2, 4):
        some = slice(PYTORCH_TILES)
        rows.append(_row("PyTorch's code for it", tiles[some], _pytorch(tiles[some]), best[some], n))
    return rows


def _row(name: str, tiles: Floats, keep: Booleans, best: Booleans, n: int, **times: float) -> Row:
    kept, possible = (float(tiles[mask].sum(dtype=np.float64)) for mask in (keep, best))
    full = (keep.sum(axis=1) == n).all(axis=1) & (keep.sum(axis=2) == n).all(axis=1)
    return Row(
        name="OR-tools, tile by tile" if name == "flow" else name,
        tile_count=len(tiles),
        cpu_us=times.get("cpu_us"),
        wall_us=times.get("wall_us"),
        speedup=times.get("speedup"),
        loss=1 - kept / possible,
        unsaturated=float(1 - full.mean()),
    )


def _pytorch(tiles: Floats) -> Booleans:
    """What PyTorch's Python code keeps of 4 x 4 magnitudes, one tile below the other; it changes its argument."""
    import torch
    from torch.sparse._semi_structured_conversions import _sparse_semi_structured_tile

    stacked = torch.from_numpy(tiles.reshape(-1, 4).copy())
    pruned = _sparse_semi_structured_tile(stacked)  # type: ignore[no-untyped-call]
    kept: Booleans = pruned.numpy().reshape(tiles.shape) != 0
    return kept


def _mask(kernels: Sequence[Floats], pattern: NMPattern) -> Booleans:
    """Mask every kernel; returns whether each keeps the pattern's share."""
    return np.array([transposable_mask(kernel, pattern).mean() == pattern.density for kernel in kernels])


def _first_tiles(kernels: Sequence[Floats], m: int, weight_count: int) -> Floats:
    tiles = []
    for kernel in kernels:
        tiles.append(tiles_of(np.abs(kernel), m))
        if sum(part.size for part in tiles) >= weight_count:
            break
    return np.concatenate(tiles)[: max(1, weight_count // m**2)]


def _shortest(step: Callable[[], Booleans], *, runs: int) -> tuple[Booleans, float, float]:
    """The result of `step`, and the least processor and wall time that it took, in seconds."""
    cpu_s, wall_s = [], []
    for _ in range(runs):
        cpu_start, wall_start = time.process_time(), time.perf_counter()
        result = step()
        cpu_s.append(time.process_time() - cpu_start)
        wall_s.append(time.perf_counter() - wall_start)
    return result, min(cpu_s), min(wall_s)


def _text(value: float | None) -> str:
    return "not timed" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    sys.exit(main())
