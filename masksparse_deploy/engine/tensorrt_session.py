"""A deserialized TensorRT engine with its device memory, ready to run."""

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, final

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine.batches import check_images, run_in_batches
from masksparse_deploy.engine.protocol import Images

__all__ = ["TensorRTSession"]


@final
class TensorRTSession:
    """One execution context, one stream and one buffer a tensor; implements `engine.protocol.Session`.

    A context manager: leaving it frees stream and memory. `cudart` is `cuda.bindings.runtime`.
    """

    def __init__(self, trt: Any, cudart: Any, engine: Any, *, batch: int, exposed: tuple[str, ...]) -> None:
        self._trt = trt
        self._cudart = cudart
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        outputs = [name for name in names if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT]
        (self._input_name,) = (name for name in names if name not in outputs)
        self._output_names = (*(name for name in outputs if name not in exposed), *exposed)
        self._input_shape = tuple(length if length >= 0 else None for length in engine.get_tensor_shape(self._input_name))
        self._batch = self._input_shape[0] or batch
        self._buffers: dict[str, tuple[int, int]] = {}
        self._context: Any = None
        self._stream: Any = None

    def __enter__(self) -> "TensorRTSession":
        self._stream = self._call("cudaStreamCreate")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            self.__exit__(None, None, None)
            raise MachineError("TensorRT could not create an execution context; is the GPU's memory used by another process?")
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for address, _ in self._buffers.values():
            self._call("cudaFree", address)
        self._buffers.clear()
        self._context = None
        if self._stream is not None:
            self._call("cudaStreamDestroy", self._stream)
            self._stream = None

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """As in the protocol."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """As in the protocol."""
        return self._output_names

    def run(self, images: Images) -> Mapping[str, npt.NDArray[Any]]:
        """As in the protocol; a fixed batch is filled up with zeros."""
        check_images(images, self._input_shape)
        return run_in_batches(self._run_one, images, batch=self._batch, pad=self._input_shape[0] is not None)

    def prepare(self, images: Images) -> Callable[[], None]:
        """As in the protocol; the input is copied to the device here, so that a timed inference has no transfers."""
        check_images(images, self._input_shape)
        self._bind(images)
        return self._infer

    def _run_one(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        self._bind(images)
        self._infer()
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
        results = {}
        for name in self._output_names:
            array = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name))
            self._call("cudaMemcpy", array.ctypes.data, self._buffers[name][0], array.nbytes, kind)
            results[name] = array
        return results

    def _bind(self, images: Images) -> None:
        """Set the shapes, make room for all tensors and copy the images to the device."""
        batch = np.ascontiguousarray(images, dtype=self._dtype(self._input_name))
        if self._input_shape[0] is None and not self._context.set_input_shape(self._input_name, batch.shape):
            raise MachineError(f"TensorRT does not accept a batch of {len(batch)}; build the engine with a larger batch")
        for name in (self._input_name, *self._output_names):
            shape = tuple(self._context.get_tensor_shape(name))
            address = self._reserve(name, int(np.prod(shape)) * self._dtype(name).itemsize)
            self._context.set_tensor_address(name, address)
        kind = self._cudart.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._call("cudaMemcpy", self._buffers[self._input_name][0], batch.ctypes.data, batch.nbytes, kind)

    def _reserve(self, name: str, size_bytes: int) -> int:
        address, held_bytes = self._buffers.get(name, (0, 0))
        if held_bytes < size_bytes:
            if address:
                self._call("cudaFree", self._buffers.pop(name)[0])
            address = int(self._call("cudaMalloc", size_bytes))
            self._buffers[name] = (address, size_bytes)
        return address

    def _infer(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise MachineError("TensorRT could not run the engine; its messages are on stderr")
        self._call("cudaStreamSynchronize", self._stream)

    def _dtype(self, name: str) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self._trt.nptype(self._engine.get_tensor_dtype(name)))
        return dtype

    def _call(self, function: str, *arguments: Any) -> Any:
        """Call the CUDA runtime, which returns (error code, values...)."""
        code, *values = getattr(self._cudart, function)(*arguments)
        if int(code) != 0:
            raise MachineError(f"CUDA: {function} failed with {code}")
        return values[0] if values else None
