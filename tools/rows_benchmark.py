"""How much faster ResNet-18 gets when positions are left out and computed as rows, in ONNX Runtime, and where the rest goes.

    python -m tools.rows_benchmark --out out/rows

ResNet-18 (random weights, 224 x 224 pixels, batch 1), all convolutions masked but the stem, once with and once without the 1x1
ones of shortcuts, layers of one size alike, as training draws masks: the dense network, the same with masks behind its
convolutions, in rows in two forms, with whole windows and with products with constants left out, and what the rewrite stage
chooses, run in turn in one process. What was timed is kept in the folder, one file for each share, number of threads and kind
of shortcuts, so that an interrupted run goes on; `--again` times anew. Prints tables in Markdown and writes them to report.md.
On a machine that does other work too, `--processor-time` with one thread counts only what the process computes.
"""

import argparse
import itertools
import json
import math
import re
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from onnx import helper, numpy_helper

from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.core.files import canonical_json, make_folder, write_atomic
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.learn.positions.maps import PositionMaps
from masksparse_deploy.rewrite.forms import Form, rewritten
from masksparse_deploy.rewrite.rows.grouping import WHOLE_WINDOWS, GroupCosts
from masksparse_deploy.rewrite.run import REWRITTEN_NAME, rewrite
from masksparse_deploy.rewrite.verify import differences
from tools.imagenet_networks import resnet18

__all__ = ["main", "with_positions"]

RATES = (0.2, 0.3, 0.5)
SHORTCUTS = {"masked": True, "dense": False}
FORMS = {
    "rows": Form(name="rows", costs=WHOLE_WINDOWS),
    "rows, constants left out": Form(name="rows", variant="constants left out", costs=GroupCosts()),
}
PROFILED_INFERENCES = 15
_MATRIX_PRODUCTS = ("Gemm", "FusedGemm", "MatMul")
_LAYER = re.compile(r"(layers\.\d\.\d\.\w+|stem|maxpool|pool|fc|flat)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table of networks and one of layers for each share that is left out."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for what was timed, and the report")
    parser.add_argument("--rates", nargs="+", type=float, default=RATES, help="shares of positions that are left out")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--shortcuts", nargs="+", choices=SHORTCUTS, default=list(SHORTCUTS), help="their 1x1 convolutions")
    parser.add_argument("--rounds", type=int, default=40, help="of timing, one inference of each network")
    parser.add_argument("--processor-time", action="store_true", help="instead of wall time; for one thread only")
    parser.add_argument(
        "--chosen",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="also what the rewrite stage chooses by measurement, which takes a minute each",
    )
    parser.add_argument("--again", action="store_true", help="time networks anew that were timed before")
    options = parser.parse_args(arguments)
    if options.processor_time and options.threads != [1]:
        parser.error("--processor-time counts one thread: it needs --threads 1")
    clock = time.thread_time if options.processor_time else time.perf_counter
    results = []
    for rate, threads, shortcuts in itertools.product(options.rates, options.threads, options.shortcuts):
        path = make_folder(options.out) / f"rate_{rate:g}_threads_{threads}_shortcuts_{shortcuts}.json"
        if options.again or not path.exists():
            print(f"{rate:.0%} left out, shortcuts {shortcuts}, {threads} threads", file=sys.stderr)
            result = _measure(rate, threads, options.rounds, clock, shortcuts=shortcuts, choose=options.chosen)
            write_atomic(path, canonical_json(result))
        results.append(json.loads(path.read_text(encoding="utf-8")))
    text = f"{_network_table(results)}\n\n{_layer_tables(results)}\n"
    write_atomic(options.out / "report.md", text.encode())
    print(text)
    return 0


def with_positions(model: onnx.ModelProto, rate: float, *, shortcuts: bool = False, seed: int = 0) -> onnx.ModelProto:
    """A copy in which convolutions leave out a share of their positions, as training draws masks and as they are baked.

    Args:
        model: with a size of images that is fixed.
        rate: the share of the positions of every 3x3 convolution.
        shortcuts: whether 1x1 convolutions are masked too.
        seed: of the map of scores that all masks follow.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values = (*model.graph.value_info, *model.graph.output)
    sizes = {value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim)[2:] for value in values}
    height, width = (dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[2:])
    kernels = {(3, 3), (1, 1)} if shortcuts else {(3, 3)}
    masked = [node for node in model.graph.node if node.op_type == "Conv" and constants[node.input[1]].shape[2:] in kernels]
    maps = PositionMaps(
        sizes={node.name: sizes[node.output[0]] for node in masked}, image_size=(height, width), propagated=True, seed=seed
    )
    keep = maps.keep(0, rate)
    nodes: list[onnx.NodeProto] = []
    for node in copy.graph.node:
        nodes.append(node)
        if node.name not in keep:
            continue
        (name,) = node.output
        for suffix, array in (
            ("keep", keep[node.name][None, None]),
            ("dropped", constants[node.input[2]].reshape(1, -1, 1, 1)),
        ):
            copy.graph.initializer.append(numpy_helper.from_array(array, f"{name}.{suffix}"))
        node.output[0] = f"{name}.computed"
        where = helper.make_node(
            "Where", [f"{name}.keep", node.output[0], f"{name}.dropped"], [name], name=f"{node.name}.positions"
        )
        where.metadata_props.add(key=keys.POSITIONS, value="0" * 64)
        where.metadata_props.add(key=keys.POSITIONS_LAYER, value=node.name)
        nodes.append(where)
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    del copy.graph.value_info[:]
    return onnx.shape_inference.infer_shapes(copy, strict_mode=True)


def _measure(
    rate: float, threads: int, rounds: int, clock: Callable[[], float], *, shortcuts: str, choose: bool
) -> dict[str, Any]:
    dense = resnet18()
    sparse = with_positions(dense, rate, shortcuts=SHORTCUTS[shortcuts])
    masked = [node.name.removesuffix(".positions") for node in sparse.graph.node if node.op_type == "Where"]
    models = {"dense": dense, "masked": sparse}
    models |= {name: rewritten(sparse, dict.fromkeys(masked, form)) for name, form in FORMS.items()}
    graph = parse_graph(sparse.SerializeToString(), name="sparse")
    if choose:
        models["chosen"] = _chosen(sparse, threads, clock)
    forms = [name for name in models if name not in ("dense", "masked")]
    for name in forms:
        wrong = differences(graph, parse_graph(models[name].SerializeToString(), name=name))
        assert not wrong, wrong
    (entry,) = dense.graph.input
    shape = [dim.dim_value for dim in entry.type.tensor_type.shape.dim]
    feeds = {entry.name: np.random.default_rng(0).standard_normal(shape, dtype=np.float32)}
    runs = {name: _session(model, threads) for name, model in models.items()}
    outputs = {name: session.run(None, feeds)[0] for name, session in runs.items()}
    times: dict[str, list[float]] = defaultdict(list)
    order = np.random.default_rng(1)
    for _ in range(rounds):
        for name in order.permutation(list(runs)).tolist():
            start = clock()
            runs[name].run(None, feeds)
            times[name].append((clock() - start) * 1e3)
    scale = np.abs(outputs["masked"]).max()
    return {
        "rate": rate,
        "threads": threads,
        "shortcuts": shortcuts,
        "clock": clock.__name__,
        "times_ms": times,
        "difference": {name: float(np.abs(outputs[name] - outputs["masked"]).max() / scale) for name in forms},
        "bytes": {name: model.ByteSize() for name, model in models.items()},
        "operators": {name: len(model.graph.node) for name, model in models.items()},
        "products": {name: _products(model) for name, model in models.items()},
        "layers_ms": {name: _profile(model, feeds, threads) for name, model in models.items() if name != "masked"},
        "versions": {"onnxruntime": onnxruntime.__version__},
    }


def _chosen(sparse: onnx.ModelProto, threads: int, clock: Callable[[], float]) -> onnx.ModelProto:
    """What the rewrite stage makes of the file; the file itself if nothing gets faster."""
    with tempfile.TemporaryDirectory(prefix="masksparse-") as folder:
        path = Path(folder) / "sparse.onnx"
        onnx.save(sparse, path)
        rewrite(path, RewriteOptions(), EngineOptions(batch=1, threads=threads), out=Path(folder), clock=clock)
        written = Path(folder) / REWRITTEN_NAME
        return onnx.load(written) if written.exists() else sparse


def _session(model: onnx.ModelProto, threads: int, profile: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def _profile(model: onnx.ModelProto, feeds: Mapping[str, npt.NDArray[np.float32]], threads: int) -> dict[str, dict[str, float]]:
    """Layer -> operator -> milliseconds, lower quartiles of inferences; recording them costs some microseconds an operator."""
    with tempfile.TemporaryDirectory(prefix="masksparse-") as folder:
        session = _session(model, threads, Path(folder) / "profile")
        for _ in range(PROFILED_INFERENCES):
            session.run(None, dict(feeds))
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    durations: dict[tuple[str, str, str], list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found = _LAYER.search(event["name"])
            layer = found[1] if found else "other"
            durations[layer, event["args"]["op_name"], event["name"]].append(event["dur"] / 1e3)
    layers: dict[str, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for (layer, operator, _), values in durations.items():
        layers[layer][operator] += float(np.quantile(values, 0.25))
    return layers


def _products(model: onnx.ModelProto) -> int:
    """Multiply-accumulates of convolutions and matrix products."""
    graph = parse_graph(model.SerializeToString(), name="network")
    total = 0
    for node in graph.nodes:
        if node.op == "Conv":
            positions = math.prod(length or 1 for length in graph.shapes[node.outputs[0]][2:])
            total += graph.constants[node.inputs[1]].size * positions
        elif node.op in _MATRIX_PRODUCTS:
            rows = math.prod(length or 1 for length in graph.shapes[node.outputs[0]][:-1])
            total += graph.constants[node.inputs[1]].size * rows
    return total


def _ratio(result: Mapping[str, Any], name: str) -> tuple[float, float, float]:
    """The geometric mean of the dense time over this network's, round by round, and the middle half of it."""
    logs = np.log(np.array(result["times_ms"]["dense"]) / np.array(result["times_ms"][name]))
    low, high = np.quantile(logs, (0.25, 0.75))
    kept = logs[(logs >= low) & (logs <= high)]  # on a machine that does other work, single rounds are off by far
    return float(np.exp(kept.mean())), float(np.exp(low)), float(np.exp(high))


def _network_table(results: Sequence[Mapping[str, Any]]) -> str:
    columns = ("left out", "shortcuts", "threads", "network", "dense over it", "middle half", "products", "ideal", "operators")
    rows = [(*columns, "MB", "difference"), ("---",) * (len(columns) + 2)]
    for result in results:
        for name in result["difference"]:
            ratio, low, high = _ratio(result, name)
            ideal = result["products"]["dense"] / result["products"][name]
            run = (f"{result['rate']:.0%}", result["shortcuts"], str(result["threads"]), name)
            speed = (f"{ratio:.2f}x", f"{low:.2f} to {high:.2f}", f"{1 / ideal:.1%}", f"{ideal:.2f}x")
            size = (str(result["operators"][name]), f"{result['bytes'][name] / 1e6:.0f}")
            rows.append((*run, *speed, *size, f"{result['difference'][name]:.1e}"))
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _layer_tables(results: Sequence[Mapping[str, Any]]) -> str:
    """Milliseconds of every layer, dense and in rows, and what is none of matrix products."""
    lines = []
    for result in results:
        dense = result["layers_ms"]["dense"]
        lines += ["", f"{result['rate']:.0%} left out, shortcuts {result['shortcuts']}, {result['threads']} threads:", ""]
        lines += [
            f"| layer | dense, ms | {' | '.join(FORMS)} | of that not products |",
            "|---|---|" + "---|" * len(FORMS) + "---|",
        ]
        for layer in dense:
            times = [sum(result["layers_ms"][name].get(layer, {}).values()) for name in FORMS]
            last = result["layers_ms"][list(FORMS)[-1]].get(layer, {})
            other = sum(value for operator, value in last.items() if operator not in (*_MATRIX_PRODUCTS, "Conv"))
            columns = [sum(dense[layer].values()), *times, other]
            lines.append(f"| {layer} | {' | '.join(f'{value:.2f}' for value in columns)} |")
    return "\n".join(lines).strip()


if __name__ == "__main__":
    sys.exit(main())
