"""Which times are the same, and what becomes of a file that is damaged."""

import errno
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.core.errors import OutputError
from masksparse_deploy.profiling import known_times
from masksparse_deploy.profiling.known_times import Times, TimeStore, time_key
from masksparse_deploy.rewrite.measure import Stopwatch
from tests.rewrite.machine import FakeBackend
from tests.rewrite.models import residual_blocks

STATUS = BackendStatus(
    backend="onnxruntime",
    available=True,
    reason="",
    versions={"onnxruntime": "1"},
    device=DeviceFacts(kind="cpu", name="a CPU", details={}),
)
OPTIONS = EngineOptions(batch=1, threads=1)
MODEL = residual_blocks(BlockPattern(n=4, rate=0.5))
INTERVAL = Interval(low=1.0, high=1.0, confidence=0.95)
TIMES = Times(median_ms=(2.0, 1.0), speedups=(1.0, 2.0), intervals=(INTERVAL, INTERVAL), rounds=20)


def key(model: onnx.ModelProto = MODEL, options: EngineOptions = OPTIONS, status: BackendStatus = STATUS) -> str:
    return time_key({"dense": model}, options, status)


def test_values_of_weights_and_lists_of_channels_do_not_matter() -> None:
    other = onnx.ModelProto()
    other.CopyFrom(MODEL)
    for tensor in other.graph.initializer:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + 1, tensor.name))
    assert key(other) == key()


def test_all_else_does() -> None:
    strided = onnx.ModelProto()
    strided.CopyFrom(MODEL)
    strided.graph.node[0].attribute[0].ints[:] = [1, 1]
    wider = residual_blocks(BlockPattern(n=4, rate=0.5))
    wider.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros((32, 4, 3, 3), np.float32), "stem.weight"))
    device = STATUS.model_copy(update={"device": DeviceFacts(kind="cpu", name="another", details={})})
    keys = {
        key(),
        key(strided),
        key(wider),
        key(options=EngineOptions(batch=2, threads=1)),
        key(options=EngineOptions(batch=1, threads=2)),
        key(options=EngineOptions(batch=1)),
        key(status=device),
        key(status=STATUS.model_copy(update={"versions": {"onnxruntime": "2"}})),
        time_key({"dense": MODEL, "gathered": MODEL}, OPTIONS, STATUS),
    }
    assert len(keys) == 9


def test_only_cores_that_threads_use_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {}
    for cores in (2, 4):
        monkeypatch.setattr(known_times, "available_core_count", lambda cores=cores: cores)
        keys[cores] = [key(options=EngineOptions(batch=1, threads=threads)) for threads in (0, 1, 2, 4)]
    assert [one == other for one, other in zip(keys[2], keys[4], strict=True)] == [False, True, True, False]


def test_a_full_folder_for_temporary_files_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    backend = FakeBackend(lambda model: 1e-3)
    stopwatch = Stopwatch(
        backend=backend,
        engine_options=OPTIONS,
        options=RewriteOptions(),
        store=TimeStore(tmp_path / "times.json"),
        status=STATUS,
        clock=backend.clock,
    )
    monkeypatch.setattr(Path, "write_bytes", full)
    words = r"form0\.onnx, which is to be timed, cannot be written \(No space left on device\); .* in the .*variable TMPDIR"
    with pytest.raises(OutputError, match=words):
        stopwatch.compare({"one": MODEL, "other": MODEL})


def test_times_are_found_again_if_there_are_enough_rounds(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    TimeStore(path).keep("one", TIMES)
    store = TimeStore(path)
    assert store.remark is None
    assert store.find("one", rounds=20) == TIMES
    assert store.find("one", rounds=21) is None and store.find("two", rounds=10) is None


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind": "certificate"}', b"\xff\xfe"])
def test_what_is_no_file_of_times_is_set_aside(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "times.json"
    path.write_bytes(content)
    store = TimeStore(path)
    assert store.remark is not None and store.remark.startswith("known times were set aside as times.json.damaged")
    assert (tmp_path / "times.json.damaged").read_bytes() == content and not path.exists()


def test_a_changed_time_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "times.json"
    TimeStore(path).keep("one", TIMES)
    path.write_bytes(path.read_bytes().replace(b"2.0", b"9.0", 1))
    assert "is not as it was written" in str(TimeStore(path).remark)


def test_inferences_below_the_clock_are_no_division_by_zero(tmp_path: Path) -> None:
    backend = FakeBackend(lambda model: 0.0)
    stopwatch = Stopwatch(
        backend=backend,
        engine_options=OPTIONS,
        options=RewriteOptions(rounds=10),
        store=TimeStore(tmp_path / "times.json"),
        status=STATUS,
        clock=backend.clock,
    )
    times, from_cache = stopwatch.compare({"one": MODEL, "other": MODEL})
    assert times.speedups == (1.0, 1.0) and not from_cache


def test_rounds_are_interleaved_and_ratios_are_those_of_a_round(tmp_path: Path) -> None:
    """A machine that becomes slower all the time: ratios within a round do not see it."""
    slow = residual_blocks(BlockPattern(n=4, rate=0.5))
    slow.graph.node[0].name = "slow"
    backend = FakeBackend(lambda model: (1.0 + backend.clock.now_s) * (2e-3 if model.graph.node[0].name == "slow" else 1e-3))
    stopwatch = Stopwatch(
        backend=backend,
        engine_options=OPTIONS,
        options=RewriteOptions(rounds=50),
        store=TimeStore(tmp_path / "times.json"),
        status=STATUS,
        clock=backend.clock,
    )
    times, _ = stopwatch.compare({"slow": slow, "fast": MODEL})
    # within a round of six inferences the machine slows down by 1 %
    assert times.speedups == pytest.approx((1.0, 2.0), rel=0.02)
    assert times.intervals[1].low <= times.speedups[1] <= times.intervals[1].high
    assert times.rounds == 50
