"""Which backend to use, and what works on this machine."""

import difflib

from masksparse_deploy.core.artifacts.engines import BackendStatus
from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.onnxruntime_providers import CUDA, TENSORRT
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend

__all__ = ["all_statuses", "choose_backend", "get_backend"]


_TITLES = {
    "onnxruntime": "ONNX Runtime",
    "onnxruntime-cuda": "ONNX Runtime's CUDA provider",
    "onnxruntime-tensorrt": "ONNX Runtime's TensorRT provider",
    "tensorrt": "TensorRT",
}


def get_backend(name: str) -> Backend:
    """The backend called `name` in the configuration, whether or not it works here; raises UsageError for others."""
    backends: dict[str, Backend] = {backend.name: backend for backend in _all_backends()}
    if name not in backends:
        close = difflib.get_close_matches(name, backends, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"choose one of: {', '.join(backends)}"
        raise UsageError(f"there is no backend {name!r}; {hint}")
    return backends[name]


def choose_backend(name: str) -> tuple[Backend, str]:
    """The backend for a name of the configuration, and a sentence that says which it is and why.

    "auto" takes TensorRT where it works and ONNX Runtime on the CPU otherwise; ONNX Runtime's other providers run only where
    they are asked for.

    Raises:
        UsageError: there is no such backend.
        MachineError: the backend asked for does not work here; says what is missing.
    """
    if name != "auto":
        backend = get_backend(name)
        status = backend.status()
        if not status.available:
            raise MachineError(f"the backend {name} does not work here: {status.reason}")
        return backend, f"{_described(status)}, as configured"
    tensorrt = TensorRTBackend()
    status = tensorrt.status()
    if status.available:
        return tensorrt, f"{_described(status)}, found on this machine"
    fallback = OnnxRuntimeBackend()
    fallback_status = fallback.status()
    if not fallback_status.available:
        raise MachineError(f"no backend works here: {status.reason}; {fallback_status.reason}")
    first_reason = status.reason.partition(";")[0]
    return fallback, f"{_described(fallback_status)}; TensorRT does not work here: {first_reason}; see 'masksparse doctor'"


def all_statuses() -> tuple[BackendStatus, ...]:
    """What works on this machine and why the rest does not, for every backend; never raises."""
    return tuple(backend.status() for backend in _all_backends())


def _all_backends() -> tuple[Backend, ...]:
    return OnnxRuntimeBackend(), TensorRTBackend(), OnnxRuntimeBackend(CUDA), OnnxRuntimeBackend(TENSORRT)


def _described(status: BackendStatus) -> str:
    title = _TITLES[status.backend]
    # of the packages that a backend needs the runtime's own; onnxruntime-gpu stands for onnxruntime
    runtime = "tensorrt" if status.backend == "tensorrt" else "onnxruntime"
    version = next((version for name, version in status.versions.items() if name.startswith(runtime)), "")
    place = status.device.name if status.device is not None and status.device.kind == "cuda" else "CPU"
    return f"{title} {version} on {place}".replace("  ", " ")
