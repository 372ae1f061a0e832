"""How much weight magnitude each sparsity structure keeps on real layers, against how many masks it allows.

    OMP_NUM_THREADS=1 python tools/mask_diversity.py ../shared/data/weights/cifar10_resnet20-12fca82f.safetensors \
        --out out/diversity.html

takes all kernels with a multiple of 16 output and input channels, chooses for each structure the masks that keep the most
|weight|, all at half density, and prints a Markdown table: the share of |weight| that is kept, and log10 of the number of masks
per 64 weights, exactly and by the formula of the paper. With --out it also writes a plot.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from masksparse_deploy.core.diversity import block_diversity, pattern_diversity, unstructured_diversity
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.transposable.solve import transposable_mask

__all__ = ["main", "measure", "plot", "table"]

Kernel = npt.NDArray[np.float32]
Keep = npt.NDArray[np.bool_]

MULTIPLE = 16
PATTERNS = ("8:16", "4:8", "T8:16", "2:4", "T4:8", "1:2", "T2:4", "T1:2")
BLOCKS = (4, 16)
# What log10 of the number of masks is given for: an 8 x 8 block.
UNIT = 64


@dataclass(frozen=True, kw_only=True)
class Point:
    """One structure.

    Attributes:
        name: as "T2:4".
        kept_share: of the sum of |weight|, over all layers.
        log10_masks: per 64 weights, of all layers together.
        log10_by_paper: the same by the paper's formula; None where the paper's is the exact one, or has none.
    """

    name: str
    kept_share: float
    log10_masks: float
    log10_by_paper: float | None = None


def measure(kernels: Mapping[str, Kernel]) -> list[Point]:
    """All structures on `kernels`, float32 (out_channels, in_channels, ...), the most diverse first."""
    points = [_point("unstructured", kernels, _largest_half, lambda k: unstructured_diversity(k.size, k.size // 2))]
    points += [_pattern_point(NMPattern.parse(text), kernels) for text in PATTERNS]
    points += [_block_point(block, kernels) for block in BLOCKS]
    return sorted(points, key=lambda point: -point.log10_masks)


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table."""
    lines = ["| structure | kept share of magnitude | log10 of masks per 64 weights | by the paper |", "|---|---|---|---|"]
    for point in points:
        by_paper = "" if point.log10_by_paper is None else f"{point.log10_by_paper:.2f}"
        lines.append(f"| {point.name} | {point.kept_share:.4f} | {point.log10_masks:.2f} | {by_paper} |")
    return "\n".join(lines)


def plot(points: Sequence[Point], title: str) -> bytes:
    """A self-contained HTML page: magnitude against diversity, with the paper's diversity of transposable masks beside it."""
    graph_objects = require("plotly.graph_objects", needed_for="the plot of mask diversity")
    series = (
        ("exact", [(point.log10_masks, point) for point in points], "circle", "top center"),
        (
            "by the paper",
            [(p.log10_by_paper, p) for p in points if p.log10_by_paper is not None],
            "circle-open",
            "bottom center",
        ),
    )
    figure = graph_objects.Figure()
    for name, places, symbol, position in series:
        figure.add_scatter(
            x=[x for x, _ in places],
            y=[point.kept_share for _, point in places],
            text=[point.name for _, point in places],
            mode="markers+text",
            textposition=position,
            marker={"symbol": symbol, "size": 9},
            name=name,
        )
    figure.update_layout(
        title=title,
        template="plotly_white",
        width=880,
        height=480,
        xaxis_title="log10 of the number of masks per 64 weights",
        yaxis_title="share of |weight| that is kept",
    )
    page: str = figure.to_html(include_plotlyjs=True, div_id="diversity", config={"displayModeBar": False})
    return page.encode()


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print; write the plot if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="a checkpoint, .safetensors")
    parser.add_argument("--out", type=Path, help="the plot, .html")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    kernels = {name: array for name, array in load_file(options.weights).items() if _is_eligible(array)}
    if not kernels:
        raise UsageError(f"{options.weights} holds no kernel with multiples of {MULTIPLE} output and input channels")
    points = measure(kernels)
    print(json.dumps([vars(point) for point in points]) if options.json else table(points))
    if options.out is not None:
        title = f"{options.weights.stem}: {len(kernels)} layers, {sum(k.size for k in kernels.values()):,} weights"
        write_atomic(options.out, plot(points, title))
    return 0


def _is_eligible(array: Kernel) -> bool:
    return array.ndim > 1 and array.dtype == np.float32 and not (array.shape[0] % MULTIPLE or array.shape[1] % MULTIPLE)


def _point(name: str, kernels: Mapping[str, Kernel], choose: Callable[[Kernel], Keep], count: Callable[[Kernel], int]) -> Point:
    magnitudes = [np.abs(kernel.astype(np.float64)) for kernel in kernels.values()]
    keeps = [choose(np.abs(kernel)) for kernel in kernels.values()]
    for keep in keeps:
        assert 2 * np.count_nonzero(keep) == keep.size, name
    kept = sum(float(magnitude[keep].sum()) for magnitude, keep in zip(magnitudes, keeps, strict=True))
    return Point(
        name=name,
        kept_share=kept / sum(float(magnitude.sum()) for magnitude in magnitudes),
        log10_masks=_log10_per_unit(kernels, count),
    )


def _pattern_point(pattern: NMPattern, kernels: Mapping[str, Kernel]) -> Point:
    if not pattern.transposable:
        return _point(
            str(pattern),
            kernels,
            lambda magnitude: pattern.keep_largest(magnitude, group_axis=1),
            lambda kernel: pattern_diversity(pattern, kernel.size),
        )
    exact = _point(
        str(pattern),
        kernels,
        lambda magnitude: transposable_mask(magnitude, pattern),
        lambda kernel: pattern_diversity(pattern, kernel.size),
    )
    by_paper = _log10_per_unit(kernels, lambda kernel: pattern_diversity(pattern, kernel.size, by_paper=True))
    return Point(name=exact.name, kept_share=exact.kept_share, log10_masks=exact.log10_masks, log10_by_paper=by_paper)


def _block_point(block: int, kernels: Mapping[str, Kernel]) -> Point:
    def choose(magnitude: Kernel) -> Keep:
        rows, columns = magnitude.shape[:2]
        # Blocks of neighbouring output channels, one for every input channel, with all places in the kernel.
        norms = magnitude.reshape(rows // block, block, columns, -1).sum((1, 3))
        largest = np.argsort(-norms, axis=1, kind="stable")[:, : columns // 2]
        keep = np.zeros((rows // block, columns), dtype=np.bool_)
        np.put_along_axis(keep, largest, True, axis=1)
        expanded = keep.repeat(block, axis=0).reshape(rows, columns, *[1] * (magnitude.ndim - 2))
        return np.broadcast_to(expanded, magnitude.shape)

    def count(kernel: Kernel) -> int:
        return block_diversity(kernel.shape[0], kernel.shape[1], block=block, kept=kernel.shape[1] // 2)

    return _point(f"1x{block} blocks", kernels, choose, count)


def _log10_per_unit(kernels: Mapping[str, Kernel], count: Callable[[Kernel], int]) -> float:
    total = math.fsum(math.log10(count(kernel)) for kernel in kernels.values())
    return UNIT * total / sum(kernel.size for kernel in kernels.values())


def _largest_half(magnitude: Kernel) -> Keep:
    keep = np.zeros(magnitude.size, dtype=np.bool_)
    keep[np.argsort(-magnitude, axis=None, kind="stable")[: magnitude.size // 2]] = True
    return keep.reshape(magnitude.shape)


if __name__ == "__main__":
    sys.exit(main())
