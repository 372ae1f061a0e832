"""How long `masksparse lint` takes for a network of the size of ResNet-50, beside `polygraphy inspect sparsity`.

    OMP_NUM_THREADS=1 python -m tools.lint_benchmark --precision float16

writes an ONNX file with the 25,493,504 weights of its masked layers, 2:4, and prints the processor seconds for reading its
bytes, for the linter from the bytes to the report, and for Polygraphy's checker of the same bytes (`pip install polygraphy`),
each the best of its runs, and how many times as long as the linter Polygraphy takes. `--file` looks at a file of yours instead.
"""

import argparse
import importlib.util
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from masksparse_deploy.bake.lint import lint_graph
from masksparse_deploy.core.artifacts.baking import LintReport
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.reader import parse_graph
from tools.hardening_benchmark import resnet50_kernels

__all__ = ["main", "model_of"]

DTYPES: Mapping[str, Any] = {
    "float32": np.float32,
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "float8_e4m3fn": ml_dtypes.float8_e4m3fn,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the benchmark; prints a table with one row for each step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=tuple(DTYPES), default="float16", help="of the weights")
    parser.add_argument("--runs", type=int, default=3, help="of reading and linting; Polygraphy runs once")
    parser.add_argument("--file", type=Path, help="an ONNX file, its weights inside")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        path = options.file
        if path is None:
            path = Path(folder) / "model.onnx"
            onnx.save_model(model_of(resnet50_kernels(), DTYPES[options.precision]), path)
        data, reading_s = _best(path.read_bytes, options.runs)
    report, lint_s = _best(lambda: _lint(data), options.runs)
    weight_count = sum(int(np.prod(layer.shape)) for layer in report.layers)
    conforming = sum(layer.state == "conforming" for layer in report.layers)
    print(f"{weight_count:,} weights in {len(report.layers)} layers, {conforming} conforming; {len(data):,} bytes")
    print(f"{'file reading':<28}{reading_s:8.3f} s")
    print(f"{'masksparse lint':<28}{lint_s:8.3f} s")
    if importlib.util.find_spec("polygraphy") is None:
        print(f"{'polygraphy inspect sparsity':<28}not installed")
        return 0
    _, other_s = _best(lambda: _polygraphy(data), 1)
    print(f"{'polygraphy inspect sparsity':<28}{other_s:8.3f} s   {other_s / lint_s:.0f} times as long")
    return 0


def model_of(kernels: Mapping[str, npt.NDArray[np.float32]], dtype: Any) -> onnx.ModelProto:
    """The kernels side by side, 2:4, each as the weight of a layer with an input of its own."""
    pattern, kind = NMPattern(n=2, m=4), helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes, inputs, outputs, initializers = [], [], [], []
    for name, kernel in kernels.items():
        keep = pattern.keep_largest(np.abs(kernel), group_axis=1)
        weight = np.where(keep, kernel + np.float32(1), np.float32(0)).astype(dtype)
        convolves = kernel.ndim == 4
        names = ([f"{name}.in", name], [f"{name}.out"])
        nodes.append(
            helper.make_node("Conv", *names, name=name) if convolves else helper.make_node("Gemm", *names, name=name, transB=1)
        )
        spatial = [8, 8] if convolves else []
        inputs.append(helper.make_tensor_value_info(f"{name}.in", kind, [1, kernel.shape[1], *spatial]))
        outputs.append(helper.make_tensor_value_info(f"{name}.out", kind, [None] * kernel.ndim))
        initializers.append(numpy_helper.from_array(weight, name))
    graph = helper.make_graph(nodes, "layers", inputs, outputs, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def _lint(data: bytes) -> LintReport:
    return lint_graph(parse_graph(data, name="model.onnx"), name="model.onnx")


def _polygraphy(data: bytes) -> set[str]:
    """What `polygraphy inspect sparsity` does with the bytes of a file; the names of the weights that it finds sparse."""
    from polygraphy.logger import G_LOGGER
    from polygraphy.tools.sparse import SparsityPruner

    with G_LOGGER.verbosity(G_LOGGER.CRITICAL):
        checker = SparsityPruner(onnx.load_model_from_string(data))
        checker.check()
    return set(checker.sparse_tensors)


def _best(step: Callable[[], Any], runs: int) -> tuple[Any, float]:
    """The result of `step` and the least processor time that it took, in seconds: what else the machine does counts little."""
    shortest = float("inf")
    for _ in range(runs):
        start = time.process_time()
        result = step()
        shortest = min(shortest, time.process_time() - start)
    return result, shortest


if __name__ == "__main__":
    sys.exit(main())
