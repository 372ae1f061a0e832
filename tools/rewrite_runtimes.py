"""The runtimes that the benchmark of rewritten networks times files with, each in the same way: in turn, in random order."""

import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.optional import require
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.profiling.sampling import Clock, sample_rounds

__all__ = ["RUNTIMES", "Timed"]

Array = npt.NDArray[Any]
# Times, float64 (rounds, inferences a round) in milliseconds, and the first output, by file; and the runtime's version.
Timed = tuple[dict[str, Array], dict[str, Array], str]


def _onnxruntime(contents: Mapping[str, bytes], image: Array, threads: int, options: ProfileOptions, clock: Clock) -> Timed:
    backend, engine_options = OnnxRuntimeBackend(), EngineOptions(batch=len(image), threads=threads)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="masksparse-")))
        engines, outputs = {}, {}
        for name, content in contents.items():
            path = folder / f"{name}.onnx"
            path.write_bytes(content)
            backend.build(path, folder, engine_options, name=name)
            session = stack.enter_context(backend.open(metadata_path(folder, name), threads=threads))
            engines[name] = session.prepare(image)
            outputs[name] = session.run(image)[session.output_names[0]]
        times = sample_rounds(engines, options, clock=clock)
    return times, outputs, backend.status().versions["onnxruntime"]


def _openvino(contents: Mapping[str, bytes], image: Array, threads: int, options: ProfileOptions, clock: Clock) -> Timed:
    openvino = require("openvino", needed_for="timing networks with OpenVINO")
    core = openvino.Core()
    # one stream on all threads, for the shortest time of one inference; in FP32, as ONNX Runtime has it
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    engines: dict[str, Callable[[], None]] = {}
    outputs = {}
    for name, content in contents.items():
        request = core.compile_model(core.read_model(content), "CPU", settings).create_infer_request()
        request.set_input_tensor(openvino.Tensor(image))
        request.infer()
        outputs[name] = np.array(request.get_output_tensor().data)
        engines[name] = request.infer
    return sample_rounds(engines, options, clock=clock), outputs, openvino.__version__.partition("-")[0]


RUNTIMES: Mapping[str, Callable[[Mapping[str, bytes], Array, int, ProfileOptions, Clock], Timed]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
}
