"""How much faster rewriting 1xN layers makes whole networks, in ONNX Runtime and OpenVINO, and where the rest of the time goes.

    python -m tools.rewrite_benchmark --out out/rewrite

For ResNet-18, ResNet-50 and MobileNetV1 (random weights, 224 x 224 pixels, batch 1), half and three quarters of the 1x32 blocks
pruned at random, one and two threads: the rewrite stage chooses a form for every layer by measurement, then the dense network,
the same with zeros in place of what is pruned, every layer gathered, the same without output channels that nobody reads, and
the chosen forms are timed in turn, in random order.
What was chosen and what was timed are kept in the folder, one file each, so that an interrupted run goes on; `--again` times
the networks anew with the forms chosen before. Prints tables in Markdown and writes them to report.md, all figures to
report.json. On a machine that does other work too, `--processor-time` with one thread counts only what the process computes.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.channel_block import channel_block
from masksparse_deploy.core.config import EngineOptions, ProfileOptions, RewriteOptions
from masksparse_deploy.core.files import canonical_json, make_folder, sha256_bytes, write_atomic
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.profiling.latencies import median_interval, round_ratios
from masksparse_deploy.profiling.sampling import Clock
from masksparse_deploy.rewrite.forms import forms_of, rewritten
from masksparse_deploy.rewrite.run import REPORT_NAME, REWRITTEN_NAME, rewrite
from masksparse_deploy.rewrite.sites import find_sites
from tools.imagenet_networks import INPUT_SHAPE, NETWORKS, with_blocks
from tools.rewrite_layers import profile_layers
from tools.rewrite_runtimes import RUNTIMES
from tools.rewrite_tables import layer_table, network_table

__all__ = ["Case", "main"]

PATTERNS = ("1x32@0.5/16", "1x32@0.75/16")
CONFIDENCE = 0.95
PROFILED_INFERENCES = 15
REWRITTEN = ("gathered", "unread left out", "chosen")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A network with a pattern, and how many threads run it."""

    network: str
    pattern: str
    threads: int

    def __str__(self) -> str:
        return f"{self.network}_{self.pattern.replace('/', '-')}_{self.threads}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table of networks and one of layers for each network and pattern."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what was chosen and timed, and the report")
    parser.add_argument("--networks", nargs="+", choices=tuple(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--patterns", nargs="+", default=PATTERNS, help="1xN@P/K")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--runtimes", nargs="+", choices=tuple(RUNTIMES), default=list(RUNTIMES))
    parser.add_argument("--rounds", type=int, default=15, help="of timing networks, three inferences each")
    parser.add_argument("--rewrite-rounds", type=int, default=10, help="of timing forms of layers, for the choice")
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread only")
    parser.add_argument("--again", action="store_true", help="time networks anew that were timed before")
    options = parser.parse_args(arguments)
    if options.processor_time and options.threads != [1]:
        parser.error("--processor-time adds up what all threads compute: it needs --threads 1")
    results: list[dict[str, Any]] = []
    for network in options.networks:
        for pattern in options.patterns:
            for threads in options.threads:
                case = Case(network=network, pattern=pattern, threads=threads)
                results += _results(case, options)
    tables = [network_table(results), *map(layer_table, (result for result in results if result["layers"]))]
    text = "\n\n".join(tables) + "\n"
    write_atomic(options.out / "report.json", canonical_json(results))
    write_atomic(options.out / "report.md", text.encode())
    print(text, end="")
    return 0


def _results(case: Case, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What was timed of a case, for each runtime; from the folder where it was before."""
    folder = make_folder(options.out / str(case))
    missing = [name for name in options.runtimes if options.again or not (folder / f"{name}.json").is_file()]
    if missing:
        dense = NETWORKS[case.network](0)
        sparse = with_blocks(dense, BlockPattern.parse(case.pattern))
        clock = time.process_time if options.processor_time else time.perf_counter
        report = _chosen(case, sparse, folder, rounds=options.rewrite_rounds, clock=clock)
        contents = {"dense": dense.SerializeToString(), "zeros": sparse.SerializeToString()}
        contents["gathered"] = _always(sparse).SerializeToString()
        contents["unread left out"] = _always(sparse, unread_block=channel_block()).SerializeToString()
        is_rewritten = report.rewritten_sha256 is not None
        contents["chosen"] = (folder / REWRITTEN_NAME).read_bytes() if is_rewritten else contents["zeros"]
        for name in missing:
            result = _time(case, name, contents, report, rounds=options.rounds, clock=clock)
            write_atomic(folder / f"{name}.json", canonical_json(result))
            print(f"{case} {name}: {result['speedups']['chosen']['geometric_mean']:.2f}x", file=sys.stderr, flush=True)
    for name in options.runtimes:
        yield json.loads((folder / f"{name}.json").read_bytes())


def _chosen(case: Case, sparse: onnx.ModelProto, folder: Path, *, rounds: int, clock: Clock) -> RewriteReport:
    """The rewrite stage's report, of this run or of one before on the same file."""
    content = sparse.SerializeToString()
    if (folder / REPORT_NAME).is_file():
        report = RewriteReport.read(folder / REPORT_NAME)
        if report.sparse_sha256 == sha256_bytes(content):
            return report
    with tempfile.TemporaryDirectory(prefix="masksparse-") as scratch:
        path = Path(scratch) / "sparse.onnx"
        path.write_bytes(content)
        engine_options = EngineOptions(backend="onnxruntime", batch=1, threads=case.threads)
        options = RewriteOptions(rounds=rounds)
        return rewrite(path, options, engine_options, out=folder, clock=clock, progress=_told(case))


def _told(case: Case) -> Progress:
    """One line for each step of the choice, when it is done."""

    def tell(description: str, done: int, total: int) -> None:
        if done == total:
            print(f"{case}: {description}, {total} done", file=sys.stderr, flush=True)

    return tell


def _always(sparse: onnx.ModelProto, unread_block: int | None = None) -> onnx.ModelProto:
    """Every layer in the form to expect most of, whether it gets faster or not; see `rewritten`."""
    sites = find_sites(parse_graph(sparse.SerializeToString(), name="sparse.onnx"))
    forms = {site.name: forms_of(site, channel_block())[-1] for site in sites}
    return rewritten(sparse, forms, unread_block=unread_block)


def _time(
    case: Case, runtime: str, contents: dict[str, bytes], report: RewriteReport, *, rounds: int, clock: Clock
) -> dict[str, Any]:
    """Time the files of a case with a runtime; layers too where the runtime tells of them."""
    image = np.random.default_rng(0).standard_normal(INPUT_SHAPE, dtype=np.float32)
    options = ProfileOptions(rounds=rounds, warmup=3)
    times, outputs, version = RUNTIMES[runtime](contents, image, case.threads, options, clock)
    largest = np.abs(outputs["zeros"]).max()
    result: dict[str, Any] = {
        "network": case.network,
        "pattern": case.pattern,
        "threads": case.threads,
        "runtime": f"{runtime} {version}",
        "device": report.device,
        "rounds": rounds,
        "clock": "processor time" if clock is time.process_time else "wall time",
        "median_ms": {name: float(np.median(values)) for name, values in times.items()},
        "speedups": {name: _speedup(times["dense"], values) for name, values in times.items() if name != "dense"},
        # of the outputs, to the largest of them; of the same weights, so that only the order of sums differs
        "relative_error": {name: float(np.abs(outputs[name] - outputs["zeros"]).max() / largest) for name in REWRITTEN},
        "layers": [],
    }
    if runtime == "onnxruntime":
        result["layers"] = _layers(case, contents, report, image)
    return result


def _speedup(dense_ms: Any, other_ms: Any) -> dict[str, float]:
    """Of the rounds' ratios of medians: geometric mean, an interval for the median, the smallest and the largest."""
    ratios = round_ratios(dense_ms, other_ms)
    interval = median_interval(ratios, CONFIDENCE)
    return {
        "geometric_mean": float(np.exp(np.log(ratios).mean())),
        "low": interval.low,
        "high": interval.high,
        "smallest": float(ratios.min()),
        "largest": float(ratios.max()),
    }


def _layers(case: Case, contents: dict[str, bytes], report: RewriteReport, image: Any) -> list[dict[str, Any]]:
    names = [layer.node for layer in report.layers]
    before, after = (
        profile_layers(contents[name], names, image, threads=case.threads, inferences=PROFILED_INFERENCES)
        for name in ("dense", "chosen")
    )
    model = onnx.load_model_from_string(contents["zeros"])
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    sizes = {value.name: [n.dim_value for n in value.type.tensor_type.shape.dim] for value in model.graph.value_info}
    nodes = {node.name: node for node in model.graph.node}
    return [
        {
            "layer": layer.node,
            "weight": shapes[nodes[layer.node].input[1]],
            "output": sizes[nodes[layer.node].output[0]],
            "form": layer.form,
            "reason": layer.reason,
            "density": layer.density,
            "computed_density": layer.computed_density,
            "dense_ms": before[layer.node].total_ms,
            "conv_ms": after[layer.node].conv_ms,
            "gather_ms": after[layer.node].gather_ms,
            "reorder_ms": after[layer.node].reorder_ms,
            "join_ms": after[layer.node].join_ms,
        }
        for layer in report.layers
    ]


if __name__ == "__main__":
    sys.exit(main())
