"""Without a GPU, or without the packages: a reason, exit code 3, and never a crash."""

import subprocess
import sys
from pathlib import Path

import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from tests.engine.fake_tensorrt import GPU

NO_DRIVER = DriverAnswer(None, "no NVIDIA driver found")
BACKEND = TensorRTBackend(ask_driver=lambda: NO_DRIVER)


def test_status_names_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: False)
    status = BACKEND.status()
    assert not status.available
    for words in ("no NVIDIA driver found", "tensorrt, cuda-bindings", "masksparse-deploy[gpu,tensorrt]", "onnxruntime"):
        assert words in status.reason
    assert status.device is None


def test_a_gpu_without_the_packages_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: name != "tensorrt")
    status = TensorRTBackend(ask_driver=lambda: GPU).status()
    assert status.reason.startswith("not installed: tensorrt (pip install 'masksparse-deploy[tensorrt]')")
    assert status.device == GPU.device


def test_build_and_open_exit_with_3(dense_onnx: Path, tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="no NVIDIA driver found") as error:
        BACKEND.build(dense_onnx, tmp_path / "out", EngineOptions(), name="dense")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
    with pytest.raises(MachineError, match="no NVIDIA driver found"), BACKEND.open(tmp_path / "dense.engine.json"):
        pass


# A package that takes the process down when it is imported, as TensorRT 8.6 does when it is used without a GPU.
CRASHING_PACKAGE = "import os\nos._exit(139)\n"
ASK = """
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
backend = TensorRTBackend(ask_driver=lambda: DriverAnswer({device}, "no driver"))
try:
    backend._ready()
except MachineError as error:
    print("refused:", error)
"""


def ask(folder: Path, device: str) -> subprocess.CompletedProcess[str]:
    for package in ("tensorrt", "cuda"):
        (folder / f"{package}.py").write_text(CRASHING_PACKAGE)
    code = f"import sys\nsys.path.insert(0, {str(folder)!r})\n" + ASK.format(device=device)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


def test_tensorrt_is_not_imported_without_a_gpu(tmp_path: Path) -> None:
    result = ask(tmp_path, "None")
    assert result.returncode == 0, result.stderr
    assert "refused: the backend tensorrt does not work here: no driver" in result.stdout


def test_the_crashing_package_would_have_crashed(tmp_path: Path) -> None:
    device = "tensorrt_backend.DeviceFacts(kind='cuda', name='GPU', details={})"
    assert ask(tmp_path, device).returncode == 139
