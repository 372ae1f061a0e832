"""Times by CUDA events, graphs, transfers and TensorRT's profiler, on stand-ins whose clock inferences move."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.protocol import DeviceTimed
from masksparse_deploy.engine.tensorrt_layers import layer_recorder
from masksparse_deploy.engine.tensorrt_log import BuilderMessages
from masksparse_deploy.engine.tensorrt_session import TensorRTSession
from tests.engine.timed_cuda import INFERENCE_MS, LAUNCH_MS, LAYERS, TimedContext, TimedCudart, TimedEngine, TimedTensorRT

IMAGES = np.ones((4, 3, 8, 8), np.float32)
BYTES = IMAGES.nbytes


@pytest.fixture
def cudart() -> TimedCudart:
    return TimedCudart()


@pytest.fixture
def session(cudart: TimedCudart) -> Iterator[TensorRTSession]:
    with TensorRTSession(TimedTensorRT(), cudart, TimedEngine(cudart), batch=4, exposed=()) as opened:
        yield opened
    assert cudart.memory == {}
    assert cudart.handles == {}
    assert cudart.streams == 0


def test_the_session_tells_the_times_of_its_device(session: TensorRTSession) -> None:
    assert isinstance(session, DeviceTimed)
    assert not isinstance(OnnxRuntimeBackend(), DeviceTimed)


@pytest.mark.parametrize(("cuda_graph", "expected"), [(False, INFERENCE_MS + LAUNCH_MS), (True, INFERENCE_MS)])
def test_time_between_events(session: TensorRTSession, cudart: TimedCudart, cuda_graph: bool, expected: float) -> None:
    infer = session.time_on_device(IMAGES, cuda_graph=cuda_graph)
    assert infer() == infer() == expected
    assert cudart.copies == []


def test_a_recorded_inference_survives_a_larger_batch(session: TensorRTSession, cudart: TimedCudart) -> None:
    infer = session.time_on_device(IMAGES[:2], cuda_graph=True)
    before = set(cudart.memory)
    session.run(IMAGES)
    assert before < set(cudart.memory)  # what the graph reads and writes is still there
    assert infer() == INFERENCE_MS


def test_transfers_go_both_ways(session: TensorRTSession, cudart: TimedCudart) -> None:
    session.prepare_with_transfers(IMAGES)()
    to_device, to_host = cudart.cudaMemcpyKind.cudaMemcpyHostToDevice, cudart.cudaMemcpyKind.cudaMemcpyDeviceToHost
    assert cudart.copies == [(to_device, BYTES), (to_host, BYTES)]
    pinned = [np.frombuffer(memory, np.float32, IMAGES.size) for memory in cudart.memory.values()]
    # the batch and its copy on the device, the result and its copy on the host
    assert sorted(float(array[0]) for array in pinned) == [1.0, 1.0, 2.0, 2.0]


def test_layer_times(session: TensorRTSession) -> None:
    assert session.layer_times_ms(IMAGES, count=3) == {name: (ms,) * 3 for name, ms in LAYERS.items()}
    np.testing.assert_array_equal(session.run(IMAGES)["logits"], IMAGES + 1)  # in the context it had before


def test_a_second_context_that_gets_no_range_of_shapes_is_told(
    session: TensorRTSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TimedContext, "set_optimization_profile_async", lambda self, index, stream: False)
    with pytest.raises(MachineError, match="does not give another context the range of shapes"):
        session.layer_times_ms(IMAGES, count=3)
    np.testing.assert_array_equal(session.run(IMAGES)["logits"], IMAGES + 1)


def test_times_of_a_layer_that_runs_twice_are_added() -> None:
    recorder: Any = layer_recorder(TimedTensorRT())
    for _ in range(2):
        recorder.begin()
        for ms in (1.0, 2.0):
            recorder.report_layer_time("body", ms)
    assert recorder.times_ms() == {"body": (3.0, 3.0)}


@pytest.mark.parametrize("package", ["tensorrt", "tensorrt_rtx"])
def test_the_recorder_is_what_nvidias_bindings_take(package: str) -> None:
    """TensorRT-RTX's base class of profilers is TensorRT's."""
    trt = pytest.importorskip(package)
    recorder: Any = layer_recorder(trt)
    assert isinstance(recorder, trt.IProfiler)
    recorder.begin()
    recorder.report_layer_time("conv", 0.25)
    assert recorder.times_ms() == {"conv": (0.25,)}


def test_what_cannot_be_recorded_ends_the_capture(
    session: TensorRTSession, cudart: TimedCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def fail(stream: int) -> tuple[int, int]:
        ended.append(stream)
        cudart.recording = None
        return 901, 0

    monkeypatch.setattr(cudart, "cudaStreamEndCapture", fail)
    with pytest.raises(MachineError, match="cudaStreamEndCapture failed with 901"):
        session.time_on_device(IMAGES, cuda_graph=True)
    assert len(ended) == 1


def test_a_failing_launch_ends_the_capture_too(
    session: TensorRTSession, cudart: TimedCudart, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.prepare(IMAGES)()
    monkeypatch.setattr(session, "_infer", lambda: None)
    monkeypatch.setattr(session._context, "execute_async_v3", lambda stream: False)
    with pytest.raises(MachineError, match="could not run the engine"):
        session.time_on_device(IMAGES, cuda_graph=True)
    assert cudart.recording is None


@pytest.mark.parametrize("count", [2, 6])
def test_an_engine_of_a_fixed_batch_takes_no_other(cudart: TimedCudart, count: int) -> None:
    engine, images = TimedEngine(cudart, shape=IMAGES.shape), np.ones((count, 3, 8, 8), np.float32)
    with TensorRTSession(TimedTensorRT(), cudart, engine, batch=4, exposed=()) as session:
        for bind in (session.prepare, session.prepare_with_transfers):
            with pytest.raises(UsageError, match=f"takes 4 images at once, not {count}"):
                bind(images)
        np.testing.assert_array_equal(session.run(images)["logits"], images + 1)


def test_what_tensorrt_says_of_a_failure_is_told(cudart: TimedCudart, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = BuilderMessages()
    engine = TimedEngine(cudart)
    with TensorRTSession(TimedTensorRT(), cudart, engine, batch=4, exposed=(), messages=messages) as session:
        infer = session.prepare(IMAGES)
        messages.errors.append("illegal memory access")
        monkeypatch.setattr(session._context, "execute_async_v3", lambda stream: False)
        with pytest.raises(MachineError, match="could not run the engine: illegal memory access"):
            infer()
