"""Calls of the CUDA runtime that raise where the runtime returns an error code."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from masksparse_deploy.core.errors import MachineError

__all__ = ["CudaRuntime"]


@dataclass(frozen=True, eq=False)
class CudaRuntime:
    """The module `cuda.bindings.runtime`, of the official bindings, each function of which returns (error code, values...)."""

    module: Any

    def call(self, function: str, *arguments: Any) -> Any:
        """The value that a function of the runtime returns, None where there is none; raises MachineError."""
        code, *values = getattr(self.module, function)(*arguments)
        if int(code) != 0:
            raise MachineError(f"CUDA: {function} failed with {code}")
        return values[0] if values else None

    def copy_to_device(self, to: int, source: int, size_bytes: int, stream: Any = None) -> None:
        """Copy from host memory; on a stream the copy may still run when this returns."""
        self._copy(to, source, size_bytes, self.module.cudaMemcpyKind.cudaMemcpyHostToDevice, stream)

    def copy_to_host(self, to: int, source: int, size_bytes: int, stream: Any = None) -> None:
        """Copy from device memory; on a stream the copy may still run when this returns."""
        self._copy(to, source, size_bytes, self.module.cudaMemcpyKind.cudaMemcpyDeviceToHost, stream)

    @contextmanager
    def capture(self, stream: Any) -> Iterator[list[Any]]:
        """What is launched on the stream meanwhile is recorded instead of run; the list holds the graph afterwards.

        Raises:
            MachineError: something was launched that cannot be recorded.
        """
        graphs: list[Any] = []
        # only this thread's calls are held back: the sampling of clocks may go on in another
        mode = self.module.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.call("cudaStreamBeginCapture", stream, mode)
        try:
            yield graphs
        except BaseException:
            code, *unfinished = self.module.cudaStreamEndCapture(stream)  # the stream is of no use before
            if int(code) == 0:
                self.call("cudaGraphDestroy", *unfinished)
            raise
        graphs.append(self.call("cudaStreamEndCapture", stream))

    def _copy(self, to: int, source: int, size_bytes: int, kind: Any, stream: Any) -> None:
        if stream is None:
            self.call("cudaMemcpy", to, source, size_bytes, kind)
        else:
            self.call("cudaMemcpyAsync", to, source, size_bytes, kind, stream)
