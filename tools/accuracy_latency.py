"""Accuracy against latency: the runs of tools/block_accuracy.py, each timed on this machine in the form that it is deployed in.

    OMP_NUM_THREADS=1 python -m tools.accuracy_latency --results out/accuracy --data ../shared/data --out out/latency

bakes the mask set of one run of every row, rewrites and builds it, and times it against its dense twin in the same process
(ONNX Runtime, batch 1, one thread); a row that has its file in --out is not timed again. Prints a Markdown table, and writes
the plot into the --out folder: a page for each network, on which dense and 2:4 are points like the others.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.config import BakeOptions, EngineOptions, ModelOptions, ProfileOptions, RewriteOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import canonical_json, make_folder, write_atomic
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.select import choose_backend
from masksparse_deploy.pipeline.baking import bake_model
from masksparse_deploy.profiling.compare import profile_pair
from masksparse_deploy.rewrite.run import rewrite
from tools.block_accuracy import accuracy_of, by_row
from tools.cifar10_acceptance import MODEL_FILE, NETWORKS

__all__ = ["Point", "main", "plot", "table"]

_ENGINE = EngineOptions(backend="onnxruntime", batch=1, threads=1)
_IMAGE_SHAPE = (3, 32, 32)


@dataclass(frozen=True, kw_only=True)
class Point:
    """One row of the accuracy table, timed.

    Attributes:
        network: as "resnet20".
        masks: method, pattern and what else is not the default.
        accuracy: the mean over the seeds, in percent.
        spread: their standard deviation, in points; None of a single seed.
        speedup: the dense twin's time over this one's.
        rewritten: how many layers run in another form than dense.
    """

    network: str
    masks: str
    accuracy: float
    spread: float | None
    speedup: float
    rewritten: int


def table(points: Sequence[Point]) -> str:
    """The points as a Markdown table, networks apart, fastest first."""
    lines = ["| network | masks | accuracy | spread | speedup | layers rewritten |", "|---|---|---|---|---|---|"]
    for point in sorted(points, key=lambda point: (point.network, -point.speedup)):
        spread = "" if point.spread is None else f"{point.spread:.2f}"
        figures = f"{point.accuracy:.2f} % | {spread} | {point.speedup:.2f}x | {point.rewritten}"
        lines.append(f"| {point.network} | {point.masks} | {figures} |")
    return "\n".join(lines)


def plot(points: Sequence[Point], title: str) -> bytes:
    """A self-contained HTML page: accuracy against the time of an inference, dense as 1; a colour for each method."""
    graph_objects = require("plotly.graph_objects", needed_for="the plot of accuracy against latency")
    figure = graph_objects.Figure()
    for method in sorted({_labels(point.masks)[0] for point in points}):
        chosen = [point for point in points if _labels(point.masks)[0] == method]
        figure.add_scatter(
            x=[1 / point.speedup for point in chosen],
            y=[point.accuracy for point in chosen],
            error_y={"array": [point.spread or 0.0 for point in chosen]},
            text=[_labels(point.masks)[1] for point in chosen],
            mode="markers+text",
            textposition="top center",
            name=method,
        )
    figure.update_layout(
        title=title,
        template="plotly_white",
        width=880,
        height=600,
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        xaxis_title="time of an inference, dense as 1 (ONNX Runtime, batch 1, one thread)",
        yaxis_title="top-1 accuracy in percent, mean of the seeds",
    )
    page: str = figure.to_html(include_plotlyjs=True, div_id="accuracy", config={"displayModeBar": False})
    return page.encode()


def _labels(masks: str) -> tuple[str, str]:
    """The method, which has a colour, and what stands beside a point of it: the pattern, or the share of positions left out."""
    method, *settings = masks.split(", ")
    rate = next((text.removeprefix("position_rate ") for text in settings if text.startswith("position_rate ")), None)
    if rate is None:
        return method, settings[0] if settings else ""
    papers = "position_selection training-loss" in settings
    return method + (", the paper's schedule" if papers else ""), f"{float(rate):.0%}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Time what has no time yet; print the table and write the plots."""
    parser = argparse.ArgumentParser(description="Accuracy against latency.")
    parser.add_argument("--results", type=Path, required=True, help="folder that tools/block_accuracy.py has written")
    parser.add_argument("--data", type=Path, required=True, help="folder with weights/")
    parser.add_argument("--checkpoint", type=Path, help="of networks without a published one")
    parser.add_argument("--out", type=Path, required=True, help="receives times and plots")
    parser.add_argument("--rounds", type=int, default=ProfileOptions().rounds)
    given = parser.parse_args(arguments)
    make_folder(given.out)
    found = [json.loads(path.read_text()) | {"stem": path.stem} for path in sorted(given.results.glob("*.json"))]
    if not found:
        raise UsageError(f"{given.results} holds no results; run tools/block_accuracy.py first")
    points = []
    for (network, masks), runs in by_row(found).items():
        accuracy, spread = accuracy_of(runs)
        # Which blocks are kept matters little to the time, so that one seed stands for all.
        timed = _timed(runs, given)
        points.append(Point(network=network, masks=masks, accuracy=accuracy, spread=spread, **timed))
    print(table(points))
    for network in sorted({point.network for point in points}):
        chosen = [point for point in points if point.network == network]
        write_atomic(given.out / f"{network}.html", plot(chosen, f"CIFAR-10, {network}"))


def _timed(runs: Sequence[Mapping[str, Any]], given: argparse.Namespace) -> dict[str, Any]:
    """Speedup and rewritten layers of a row, from the file of one of its runs or by the clock."""
    if runs[0]["method"] == "dense":
        return {"speedup": 1.0, "rewritten": 0}
    run = next((run for run in runs if _masks_of(run, given).is_file()), None)
    if run is None:
        raise UsageError(f"{given.results} holds no mask set of {runs[0]['stem']}; remove its .json and run it again")
    path = given.out / f"{run['stem']}.json"
    if not path.is_file():
        print(f"timing {run['stem']}", file=sys.stderr, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            timed = _measure(run, given, Path(folder))
        write_atomic(path, canonical_json(timed))
    kept: dict[str, Any] = json.loads(path.read_text())
    return {key: kept[key] for key in ("speedup", "rewritten")}


def _masks_of(run: Mapping[str, Any], given: argparse.Namespace) -> Path:
    folder: Path = given.results
    return folder / f"{run['stem']}.safetensors"


def _measure(run: Mapping[str, Any], given: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Bake, rewrite, build and time the masks of a run."""
    published = run["network"] in NETWORKS
    if not published and given.checkpoint is None:
        raise UsageError(f"no checkpoint of {run['network']} is published; give the one of the accuracy runs, --checkpoint")
    weights = given.data / "weights" / NETWORKS[run["network"]] if published else given.checkpoint
    images = Samples(np.random.default_rng(0).standard_normal((8, *_IMAGE_SHAPE), dtype=np.float32))
    masks = _masks_of(run, given).resolve()
    model = ModelOptions(factory=f"{MODEL_FILE.stem}:{run['network']}", weights=str(weights.resolve()))
    bake_model(model, masks, BakeOptions(), images, folder=MODEL_FILE.parent, out=out)
    # Times of layers are kept for all runs together.
    options = RewriteOptions(cache=str((given.out / "layers.cache").resolve()))
    rewritten: RewriteReport = rewrite(out / "sparse.onnx", options, _ENGINE, out=out)
    backend, _ = choose_backend(_ENGINE.backend)
    deployed = "sparse.onnx" if rewritten.rewritten_sha256 is None else "rewritten.onnx"
    for name, source in (("dense", "dense.onnx"), ("sparse", deployed)):
        backend.build(out / source, out, _ENGINE, name=name)
    timing = ProfileOptions(rounds=given.rounds)
    report = profile_pair(out / "dense.engine.json", out / "sparse.engine.json", images.images, _ENGINE, timing)
    return {
        "speedup": report.speedup.ratio,
        "rewritten": sum(layer.form != "dense" for layer in rewritten.layers) if rewritten.rewritten_sha256 else 0,
        "profile": report.model_dump(mode="json"),
    }


if __name__ == "__main__":
    try:
        main()
    except UsageError as error:
        sys.exit(f"error: {error}")
