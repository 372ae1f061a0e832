"""Every name of the CUDA runtime's bindings that the code uses exists, with the number of arguments it gives."""

import ast
import importlib
import importlib.util
import inspect
from pathlib import Path

import pytest

from tests.engine.timed_cuda import TimedCudart
from tests.requirements import REPOSITORY

ENGINE = REPOSITORY / "masksparse_deploy" / "engine"
FILES = (ENGINE / "cuda_runtime.py", ENGINE / "tensorrt_session.py")

# Name -> number of arguments, None for enumerations; as in cuda-bindings 12.9.10 and 13.5.0.
KNOWN = {
    "cudaEventCreate": 0,
    "cudaEventDestroy": 1,
    "cudaEventElapsedTime": 2,
    "cudaEventRecord": 2,
    "cudaEventSynchronize": 1,
    "cudaFree": 1,
    "cudaFreeHost": 1,
    "cudaGraphDestroy": 1,
    "cudaGraphExecDestroy": 1,
    "cudaGraphInstantiate": 2,
    "cudaGraphLaunch": 2,
    "cudaMalloc": 1,
    "cudaMallocHost": 1,
    "cudaMemcpy": 4,
    "cudaMemcpyAsync": 5,
    "cudaMemcpyKind": None,
    "cudaStreamBeginCapture": 2,
    "cudaStreamCaptureMode": None,
    "cudaStreamCreate": 0,
    "cudaStreamDestroy": 1,
    "cudaStreamEndCapture": 1,
    "cudaStreamSynchronize": 1,
}
MEMBERS = {
    "cudaMemcpyKind": ("cudaMemcpyDeviceToHost", "cudaMemcpyHostToDevice"),
    "cudaStreamCaptureMode": ("cudaStreamCaptureModeThreadLocal",),
}


def used(source: str) -> set[str]:
    """Names that start with "cuda" and a capital, as attributes and as text."""
    nodes = list(ast.walk(ast.parse(source)))
    names = {node.attr for node in nodes if isinstance(node, ast.Attribute)}
    names |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return {name for name in names if name.startswith("cuda") and name[4:5].isupper() and name.isidentifier()}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_name_is_known(path: Path) -> None:
    members = {member for names in MEMBERS.values() for member in names}
    assert used(path.read_text(encoding="utf-8")) - set(KNOWN) - members == set()


def test_a_wrong_name_is_found() -> None:
    assert used('self._cuda.call("cudaGraphRun", graph)\nmodule.cudaMemcpyType') - set(KNOWN) == {
        "cudaGraphRun",
        "cudaMemcpyType",
    }


@pytest.mark.parametrize("name", [name for name, count in KNOWN.items() if count is not None])
def test_the_stand_in_takes_as_many_arguments(name: str) -> None:
    """So that a call with another number of them fails in the tests as it would on a GPU."""
    assert len(inspect.signature(getattr(TimedCudart(), name)).parameters) == KNOWN[name]


@pytest.mark.skipif(importlib.util.find_spec("cuda") is None, reason="cuda-bindings (extra gpu) is not installed")
def test_the_installed_bindings_have_them() -> None:
    runtime = importlib.import_module("cuda.bindings.runtime")
    assert {name for name in KNOWN if not hasattr(runtime, name)} == set()
    assert all(hasattr(getattr(runtime, owner), member) for owner, names in MEMBERS.items() for member in names)
