import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from masksparse_deploy.engine import select, tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from tests.engine.fake_tensorrt import GPU, INSPECTED, FakeCudart, FakeTensorRT
from tests.models.make_onnx import residual_pair
from tools import record_gpu


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    for name, model in zip(("dense", "sparse"), residual_pair(), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
    words = ["--dense", str(tmp_path / "dense.onnx"), "--sparse", str(tmp_path / "sparse.onnx"), "--skip-tests"]
    for folder in ("work", "golden", "measurements"):
        words += [f"--{folder}", str(tmp_path / folder)]
    return [*words, "--batch", "4", "--rounds", "10"]


def set_driver(monkeypatch: pytest.MonkeyPatch, answer: DriverAnswer) -> None:
    for module in (record_gpu, select):
        monkeypatch.setattr(module, "TensorRTBackend", lambda: TensorRTBackend(ask_driver=lambda: answer))


@pytest.fixture
def trt(monkeypatch: pytest.MonkeyPatch) -> FakeTensorRT:
    module = FakeTensorRT()
    modules: dict[str, Any] = {"tensorrt": module, "cuda.bindings.runtime": FakeCudart()}
    monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: modules[name])
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(tensorrt_backend, "installed_versions", lambda *names: {"tensorrt": module.__version__})
    set_driver(monkeypatch, GPU)
    return module


def test_without_a_gpu_it_exits_with_3_and_writes_nothing(
    tmp_path: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_driver(monkeypatch, DriverAnswer(None, "no NVIDIA driver found"))
    assert record_gpu.main(arguments) == 3
    assert "no NVIDIA driver found" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["dense.onnx", "sparse.onnx"]


def test_everything_is_recorded(tmp_path: Path, arguments: list[str], trt: FakeTensorRT) -> None:
    assert record_gpu.main(arguments) == 0
    assert (tmp_path / "golden" / "inspector-10.16.1-sparse.json").read_text() == INSPECTED
    record = json.loads((tmp_path / "measurements" / "tensorrt-10.16.1-Fake-GPU.json").read_text())
    assert record["failures"] == {}
    assert record["sparse"]["sparse_kernels"] == "sparse tactics in 1 of 1 layers"
    assert record["profile"]["backend"] == "tensorrt"
    assert "--batch 4" in record["command"]
    summary = (tmp_path / "measurements" / "tensorrt-10.16.1-Fake-GPU.md").read_text()
    assert "| profile | dense" in summary
    assert "Steps that failed: 0." in summary


def test_failures_are_recorded_and_the_rest_still_runs(tmp_path: Path, arguments: list[str], trt: FakeTensorRT) -> None:
    assert record_gpu.main(arguments) == 0
    trt.plan = None  # what the session before left in the folder is not mistaken for this one's
    assert record_gpu.main(arguments) == 1
    record = json.loads((tmp_path / "measurements" / "tensorrt-10.16.1-Fake-GPU.json").read_text())
    assert set(record["failures"]) == {
        "build dense",
        "record inspector dense",
        "build sparse",
        "record inspector sparse",
        "profile",
    }
    assert "built no engine" in record["failures"]["build dense"]
    assert "FAILED" in (tmp_path / "measurements" / "tensorrt-10.16.1-Fake-GPU.md").read_text()
