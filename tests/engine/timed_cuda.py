"""Stand-ins with what timing uses besides: events and graphs on a clock that inferences move, and TensorRT's profiler."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.engine.fake_tensorrt import FakeContext, FakeCudart, FakeEngine, FakeTensorRT

INFERENCE_MS = 2.0
LAUNCH_MS = 0.5  # what launching costs where no graph is replayed
LAYERS = {"conv": 1.5, "pool": 0.5}


class TimedCudart(FakeCudart):
    """Keeps the GPU's time; counts handles that are not released; refuses what cannot be recorded."""

    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        super().__init__()
        self.now_ms = 0.0
        self.handles: dict[int, str] = {}
        self.events: dict[int, float] = {}
        self.recording: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}
        self.copies: list[tuple[int, int]] = []

    def _make(self, kind: str) -> int:
        handle = 1000 + len(self.handles) + len(self.graphs) + len(self.events)
        while handle in self.handles:
            handle += 1
        self.handles[handle] = kind
        return handle

    def cudaEventCreate(self) -> tuple[int, int]:  # noqa: N802
        return 0, self._make("event")

    def cudaEventRecord(self, event: int, stream: int) -> tuple[int]:  # noqa: N802
        self.events[event] = self.now_ms
        return (0,)

    def cudaEventSynchronize(self, event: int) -> tuple[int]:  # noqa: N802
        return (0,)

    def cudaEventElapsedTime(self, start: int, stop: int) -> tuple[int, float]:  # noqa: N802
        return 0, self.events[stop] - self.events[start]

    def cudaEventDestroy(self, event: int) -> tuple[int]:  # noqa: N802
        assert self.handles.pop(event) == "event"
        return (0,)

    def cudaMallocHost(self, size: int) -> tuple[int, int]:  # noqa: N802
        return self.cudaMalloc(size)

    def cudaFreeHost(self, address: int) -> tuple[int]:  # noqa: N802
        return self.cudaFree(address)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: int, stream: int) -> tuple[int]:  # noqa: N802
        self.copies.append((kind, size))
        return self.cudaMemcpy(to, source, size, kind)

    def cudaStreamBeginCapture(self, stream: int, mode: int) -> tuple[int]:  # noqa: N802
        self.recording = []
        return (0,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[int, int]:  # noqa: N802
        graph = self._make("graph")
        self.graphs[graph], self.recording = self.recording or [], None
        return 0, graph

    def cudaGraphInstantiate(self, graph: int, flags: int) -> tuple[int, int]:  # noqa: N802
        made = self._make("replay")
        self.graphs[made] = self.graphs[graph]
        return 0, made

    def cudaGraphLaunch(self, graph: int, stream: int) -> tuple[int]:  # noqa: N802
        assert self.handles[graph] == "replay"
        for launch in self.graphs[graph]:
            launch()
        return (0,)

    def cudaGraphDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        assert self.handles.pop(graph) == "graph"
        return (0,)

    def cudaGraphExecDestroy(self, graph: int) -> tuple[int]:  # noqa: N802
        assert self.handles.pop(graph) == "replay"
        return (0,)


class TimedContext(FakeContext):
    """Takes 2 ms, and launching half a millisecond more; tells its layers to a profiler."""

    def __init__(self, engine: "TimedEngine") -> None:
        super().__init__(engine)
        self.cudart = engine.cudart
        self.profiler: Any = None

    def execute_async_v3(self, stream: int) -> bool:
        if self.cudart.recording is not None:
            self.cudart.recording.append(self._compute)
            return True
        self.cudart.now_ms += LAUNCH_MS
        self._compute()
        if self.profiler is not None:
            for name, ms in LAYERS.items():
                self.profiler.report_layer_time(name, ms)
        return True

    def _compute(self) -> None:
        super().execute_async_v3(7)
        self.cudart.now_ms += INFERENCE_MS


class TimedEngine(FakeEngine):
    """Makes such contexts."""

    def __init__(self, cudart: TimedCudart, shape: tuple[int, ...] = (-1, 3, 8, 8)) -> None:
        super().__init__(shape)
        self.cudart = cudart

    def create_execution_context(self) -> FakeContext | None:
        return TimedContext(self)


class TimedTensorRT(FakeTensorRT):
    """With the base class of profilers."""

    IProfiler = object
