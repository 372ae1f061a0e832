"""A pre-flight without a GPU: NVIDIA's own ONNX parser reads a file, and its view of the weights is held against the file.

It checks parsing, and on request an ahead-of-time build. It says nothing about which kernels TensorRT will choose on a GPU,
nor how fast they are.
"""

import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from masksparse_deploy.core.artifacts.preflight import ParserError, PreflightReport
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import require_file
from masksparse_deploy.core.optional import is_installed, require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.preflight_layers import judge_layers
from masksparse_deploy.engine.preflight_parser import RESULT_NAME, ParsedNetwork
from masksparse_deploy.graph.reader import read_graph

__all__ = ["preflight"]

_PACKAGE = "tensorrt_rtx"
_MODULE = "masksparse_deploy.engine.preflight_parser"


def preflight(path: Path, *, build: bool = False, timeout_s: float = 300, progress: Progress = silent) -> PreflightReport:
    """Let NVIDIA's parser read an ONNX file, weights in other files included, on the CPU.

    The parser runs in a process of its own. If that process dies or does not end in time, the report says so and is not ok.

    Args:
        path: the ONNX file.
        build: also build an engine ahead of time, which finds what parsing alone does not.
        timeout_s: seconds after which the parser's process is ended.
        progress: told how far the work is.

    Raises:
        UsageError: there is no such file, or it cannot be read without the parser either.
        ArtifactError: the file is damaged.
        MachineError: the package tensorrt-rtx is not installed or does not work here.
    """
    require_file(path, "ONNX file")
    if not is_installed(_PACKAGE):
        require(_PACKAGE, needed_for="reading an ONNX file with NVIDIA's parser")
    progress("reading", 0, 2)
    graph = read_graph(path)
    progress("NVIDIA's parser", 1, 2)
    with tempfile.TemporaryDirectory(prefix="masksparse-preflight-") as name:
        folder = Path(name)
        death = _run_parser(path, folder, build, timeout_s)
        seen = _read_result(folder, death, build)
        layers = judge_layers(graph, seen, folder)
    progress("parsed", 2, 2)
    accepted = seen.parsed and seen.built is not False
    return PreflightReport(
        file_sha256=graph.sha256,
        versions=seen.versions or installed_versions("tensorrt-rtx"),
        parsed=seen.parsed,
        built=seen.built,
        errors=seen.errors,
        warnings=seen.warnings,
        layers=layers,
        ok=accepted and all(layer.agrees is not False and (layer.conforming or not layer.claimed) for layer in layers),
    )


def _run_parser(path: Path, folder: Path, build: bool, timeout_s: float) -> str:
    """Run the parser's process to its end; how it died in words, or "" if it did its work."""
    command = [sys.executable, "-m", _MODULE, str(path.absolute()), str(folder), *(["--build"] if build else [])]
    try:
        process = subprocess.run(command, capture_output=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"was ended because it had not finished after {timeout_s:g} seconds"
    if process.returncode == MachineError.exit_code:
        raise MachineError(process.stderr.decode(errors="replace").strip())
    if process.returncode == 0:
        return ""
    if process.returncode < 0:
        return f"died from the signal {_signal_name(-process.returncode)}"
    told = process.stderr.decode(errors="replace").strip().splitlines()
    return f"ended with exit code {process.returncode}" + (f" ({told[-1]})" if told else "")


def _read_result(folder: Path, death: str, build: bool) -> ParsedNetwork:
    """What the process wrote, with its death as an error where it died."""
    result = folder / RESULT_NAME
    if not death:
        return ParsedNetwork.read(result)
    # The answer about parsing is written before the build starts, and not at all if the parser died.
    if build and result.is_file():
        error = ParserError(node="", op="", message=f"the file was parsed, but the process that built an engine {death}")
        return ParsedNetwork.read(result).model_copy(update={"built": False, "errors": (error,)})
    error = ParserError(node="", op="", message=f"the parser's process {death}: this file makes NVIDIA's parser fail")
    return ParsedNetwork(versions={}, parsed=False, built=None, errors=(error,), warnings=(), layers=())


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)
