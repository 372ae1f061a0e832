"""A deserialized TensorRT engine with its device memory, ready to run and to be timed."""

import ctypes
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import TracebackType
from typing import Any, final

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.engine.batches import check_images, run_in_batches
from masksparse_deploy.engine.cuda_runtime import CudaRuntime
from masksparse_deploy.engine.protocol import Images
from masksparse_deploy.engine.tensorrt_layers import layer_recorder
from masksparse_deploy.engine.tensorrt_log import BuilderMessages
from masksparse_deploy.engine.tensorrt_versions import numpy_type

__all__ = ["TensorRTSession"]


@final
class TensorRTSession:
    """One execution context, one stream and one buffer a tensor; implements `engine.protocol.Session` and `DeviceTimed`.

    A context manager: leaving it frees stream and memory. `cudart` is `cuda.bindings.runtime`, and `messages` is what TensorRT
    says meanwhile.
    """

    def __init__(
        self,
        trt: Any,
        cudart: Any,
        engine: Any,
        *,
        batch: int,
        exposed: tuple[str, ...],
        smallest_batch: int = 1,
        messages: BuilderMessages | None = None,
    ) -> None:
        self._trt = trt
        self._cuda = CudaRuntime(cudart)
        self._engine = engine
        self._messages = messages or BuilderMessages()
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        outputs = [name for name in names if engine.get_tensor_mode(name) != trt.TensorIOMode.INPUT]
        (self._input_name,) = (name for name in names if name not in outputs)
        self._output_names = (*(name for name in outputs if name not in exposed), *exposed)
        self._input_shape = tuple(length if length >= 0 else None for length in engine.get_tensor_shape(self._input_name))
        self._batch = self._input_shape[0] or batch
        self._pad = self._input_shape[0] is not None or smallest_batch > 1
        self._buffers: dict[str, tuple[int, int]] = {}
        self._held = ExitStack()
        self._context: Any = None
        self._stream: Any = None

    def __enter__(self) -> "TensorRTSession":
        self._stream = self._hold("cudaStreamCreate", released_by="cudaStreamDestroy")
        self._held.callback(self._forget)
        try:
            self._context = self._new_context()
        except MachineError:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self._held.close()

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """As in the protocol."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """As in the protocol."""
        return self._output_names

    def run(self, images: Images) -> Mapping[str, npt.NDArray[Any]]:
        """As in the protocol; a last batch that the engine may find too small is filled up with zeros."""
        check_images(images, self._input_shape)
        return run_in_batches(self._run_one, images, batch=self._batch, pad=self._pad)

    def prepare(self, images: Images) -> Callable[[], None]:
        """As in the protocol; the input is copied to the device here, so that a timed inference has no transfers."""
        check_images(images, self._input_shape)
        self._bind(images)
        return self._infer

    def time_on_device(self, images: Images, *, cuda_graph: bool) -> Callable[[], float]:
        """As in the protocol `DeviceTimed`: CUDA events before and behind the inference, on its stream."""
        check_images(images, self._input_shape)
        self._bind(images)
        self._infer()  # the first inference of a shape prepares what cannot be recorded as a graph
        launch = self._recorded() if cuda_graph else self._enqueue
        start, stop = (self._hold("cudaEventCreate", released_by="cudaEventDestroy") for _ in range(2))

        def infer() -> float:
            self._cuda.call("cudaEventRecord", start, self._stream)
            launch()
            self._cuda.call("cudaEventRecord", stop, self._stream)
            self._cuda.call("cudaEventSynchronize", stop)
            return float(self._cuda.call("cudaEventElapsedTime", start, stop))

        return infer

    def prepare_with_transfers(self, images: Images) -> Callable[[], None]:
        """As in the protocol `DeviceTimed`; host memory is page-locked, so that copies run at the bus's speed."""
        check_images(images, self._input_shape)
        self._bind(images)
        sizes = {name: self._size_bytes(name) for name in (self._input_name, *self._output_names)}
        hosts = {name: self._hold("cudaMallocHost", size, released_by="cudaFreeHost") for name, size in sizes.items()}
        devices = {name: self._buffers[name][0] for name in sizes}
        batch = np.ascontiguousarray(images, dtype=self._dtype(self._input_name))
        ctypes.memmove(int(hosts[self._input_name]), batch.ctypes.data, batch.nbytes)

        def infer() -> None:
            name = self._input_name
            self._cuda.copy_to_device(devices[name], hosts[name], sizes[name], self._stream)
            self._enqueue()
            for name in self._output_names:
                self._cuda.copy_to_host(hosts[name], devices[name], sizes[name], self._stream)
            self._cuda.call("cudaStreamSynchronize", self._stream)

        return infer

    def layer_times_ms(self, images: Images, *, count: int) -> Mapping[str, tuple[float, ...]]:
        """As in the protocol `DeviceTimed`, by TensorRT's profiler, in a context of its own that is timed for nothing else."""
        check_images(images, self._input_shape)
        context = self._new_context()
        previous, self._context = self._context, context
        recorder = layer_recorder(self._trt)
        try:
            self._bind(images)
            self._infer()
            context.profiler = recorder  # an inference with a profiler waits for its end and tells every layer once
            for _ in range(count):
                recorder.begin()
                self._infer()
        finally:
            self._context = previous
        return recorder.times_ms()

    def _new_context(self) -> Any:
        """An execution context that takes shapes: TensorRT 8.6 gives the engine's range of them to its first context alone."""
        context = self._engine.create_execution_context()
        if context is None:
            raise MachineError("TensorRT could not create an execution context; is the GPU's memory used by another process?")
        if None in self._input_shape and context.active_optimization_profile != 0:
            if not context.set_optimization_profile_async(0, int(self._stream)):
                raise MachineError(f"TensorRT does not give another context the range of shapes: {self._messages.reasons()}")
            self._cuda.call("cudaStreamSynchronize", self._stream)
        return context

    def _run_one(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        self._bind(images)
        self._infer()
        results = {}
        for name in self._output_names:
            array = np.empty(tuple(self._context.get_tensor_shape(name)), self._dtype(name))
            self._cuda.copy_to_host(array.ctypes.data, self._buffers[name][0], array.nbytes)
            results[name] = array
        return results

    def _bind(self, images: Images) -> None:
        """Set the shapes, make room for all tensors and copy the images to the device."""
        batch = np.ascontiguousarray(images, dtype=self._dtype(self._input_name))
        fixed = self._input_shape[0]
        if fixed not in (None, len(batch)):  # more of them would not fit its memory
            raise UsageError(f"the engine takes {fixed} images at once, not {len(batch)}; give it batches of that size")
        if None in self._input_shape and not self._context.set_input_shape(self._input_name, batch.shape):
            raise MachineError(
                f"TensorRT does not accept a batch of {len(batch)} images of {batch.shape[2]}x{batch.shape[3]}; "
                "build the engine for a range that holds it"
            )
        for name in (self._input_name, *self._output_names):
            self._context.set_tensor_address(name, self._reserve(name, self._size_bytes(name)))
        self._cuda.copy_to_device(self._buffers[self._input_name][0], batch.ctypes.data, batch.nbytes)

    def _size_bytes(self, name: str) -> int:
        return int(np.prod(tuple(self._context.get_tensor_shape(name)))) * self._dtype(name).itemsize

    def _reserve(self, name: str, size_bytes: int) -> int:
        """Room for a tensor; what was too small is kept to the end, as a recorded graph may still use it."""
        address, held_bytes = self._buffers.get(name, (0, 0))
        if held_bytes < size_bytes:
            address = int(self._hold("cudaMalloc", size_bytes, released_by="cudaFree"))
            self._buffers[name] = (address, size_bytes)
        return address

    def _hold(self, function: str, *arguments: Any, released_by: str) -> Any:
        """What a function of the CUDA runtime makes, released when the session ends."""
        made = self._cuda.call(function, *arguments)
        self._held.callback(self._cuda.call, released_by, made)
        return made

    def _forget(self) -> None:
        """Let go of the context, after what was recorded with it and before the stream it runs on."""
        self._context = None
        self._buffers.clear()

    def _recorded(self) -> Callable[[], None]:
        """The bound inference as a CUDA graph that is replayed."""
        with self._cuda.capture(self._stream) as graphs:
            self._enqueue()
        graph = graphs[0]
        self._held.callback(self._cuda.call, "cudaGraphDestroy", graph)
        replayed = self._hold("cudaGraphInstantiate", graph, 0, released_by="cudaGraphExecDestroy")
        return lambda: self._cuda.call("cudaGraphLaunch", replayed, self._stream)

    def _infer(self) -> None:
        self._enqueue()
        self._cuda.call("cudaStreamSynchronize", self._stream)

    def _enqueue(self) -> None:
        if not self._context.execute_async_v3(int(self._stream)):
            raise MachineError(f"TensorRT could not run the engine: {self._messages.reasons()}")

    def _dtype(self, name: str) -> np.dtype[Any]:
        return numpy_type(self._trt, self._engine.get_tensor_dtype(name))
