"""ONNX Runtime's providers for GPUs: what they ask for, and that none is replaced by the CPU without a word."""

from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine import onnxruntime_providers
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.onnxruntime_providers import (
    CUDA,
    TENSORRT,
    Provider,
    compiling_options,
    recorded_options,
)
from masksparse_deploy.engine.plans import built_options
from masksparse_deploy.engine.shape_profile import ShapeRange
from tests.engine.fake_tensorrt import GPU

OPTIONS = EngineOptions(batch=4, threads=1, largest_batch=8, sparse_tactics=False, optimization_level=5, workspace_mib=64)
# What a provider that compiles goes through, run by the one that is always there.
ON_THE_CPU = Provider(
    backend="onnxruntime-tensorrt", name="CPUExecutionProvider", libraries="TensorRT", kernels="not told", compiles=True
)


@pytest.fixture
def gpu_package(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-gpu counts as installed."""
    monkeypatch.setattr(onnxruntime_providers, "installed_versions", lambda *names: dict.fromkeys(names, "1.31.1"))


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=lambda provider: provider.backend)
def test_the_driver_is_asked_first(provider: Provider) -> None:
    backend = OnnxRuntimeBackend(provider, ask_driver=lambda: DriverAnswer(None, "no NVIDIA driver found"))
    status = backend.status()
    assert (status.backend, status.available, status.device) == (provider.backend, False, None)
    assert status.reason == "no NVIDIA driver found; without it use the backend onnxruntime"
    with pytest.raises(MachineError, match="no NVIDIA driver found") as error:
        backend.build(Path("any.onnx"), Path("any"), OPTIONS, name="any")
    assert error.value.exit_code == 3
    with pytest.raises(MachineError, match="no NVIDIA driver found"), backend.open(Path("any.engine.json")):
        pass


def test_a_gpu_without_the_package() -> None:
    status = OnnxRuntimeBackend(CUDA, ask_driver=lambda: GPU).status()
    assert not status.available
    assert "not installed: onnxruntime-gpu (pip uninstall onnxruntime, then pip install onnxruntime-gpu" in status.reason
    assert status.device == GPU.device


@pytest.mark.usefixtures("gpu_package")
def test_a_package_without_the_provider() -> None:
    status = OnnxRuntimeBackend(TENSORRT, ask_driver=lambda: GPU).status()
    assert "was built without TensorrtExecutionProvider; it has" in status.reason
    assert "CPUExecutionProvider" in status.reason


@pytest.mark.parametrize("provider", [CUDA, TENSORRT], ids=lambda provider: provider.backend)
@pytest.mark.usefixtures("gpu_package")
def test_a_session_on_the_cpu_is_refused(
    dense_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: Provider
) -> None:
    """The installed runtime has no GPU providers and falls back, as it does where CUDA's libraries are missing."""
    monkeypatch.setattr(onnxruntime_providers, "missing_for_gpu", lambda *_: [])
    monkeypatch.setattr("masksparse_deploy.engine.onnxruntime_backend.missing_for_gpu", lambda *_: [])
    backend = OnnxRuntimeBackend(provider, ask_driver=lambda: GPU)
    assert backend.status().available
    with pytest.raises(MachineError, match=r"fell back to CPUExecutionProvider.* needs CUDA") as error:
        backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert provider.name in str(error.value)
    assert not (tmp_path / "dense.engine.json").exists()


def test_a_provider_that_compiles(dense_onnx: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("masksparse_deploy.engine.onnxruntime_backend.missing_for_gpu", lambda *_: [])
    backend = OnnxRuntimeBackend(ON_THE_CPU, ask_driver=lambda: GPU)
    artifact = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense", expose=("stem.out",))
    assert EngineArtifact.read(tmp_path / "dense.engine.json") == artifact
    assert (artifact.backend, artifact.layers, artifact.sparse_kernels) == ("onnxruntime-tensorrt", (), "not told")
    assert artifact.device == GPU.device
    assert (tmp_path / "dense.compiled").is_dir()
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
    reference = OnnxRuntimeBackend()
    reference.build(dense_onnx, tmp_path / "cpu", OPTIONS, name="dense")
    with backend.open(tmp_path / "dense.engine.json") as ours, reference.open(tmp_path / "cpu" / "dense.engine.json") as theirs:
        assert ours.output_names == ("logits", "stem.out")
        expected = theirs.run(images)["logits"]
        # sums of at most 288 float32 products, six layers deep, perhaps in another order: 6 * 288 * 2^-24 = 1e-4
        atol = 1e-4 * np.abs(expected).max()
        np.testing.assert_allclose(ours.run(images)["logits"], expected, rtol=0, atol=atol)


def test_what_tensorrt_is_asked_for(tmp_path: Path) -> None:
    recorded = recorded_options(TENSORRT, OPTIONS)
    shapes = ShapeRange((1, 3, 8, 8), (4, 3, 8, 8), (8, 3, 8, 8))
    providers = compiling_options(recorded, precision="fp16", shapes=shapes, input_name="images", folder=tmp_path)
    assert [name for name, _ in providers] == ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]
    options = providers[0][1]
    assert options["trt_sparsity_enable"] == "0"
    assert options["trt_fp16_enable"] == "1"
    assert "trt_int8_enable" not in options
    assert options["trt_builder_optimization_level"] == "5"
    assert options["trt_max_workspace_size"] == str(64 << 20)
    assert options["trt_profile_max_shapes"] == "images:8x3x8x8"
    assert providers[1][1] == {"use_tf32": "0"}
    assert recorded["tf32"] is True


@pytest.mark.parametrize("provider", [onnxruntime_providers.CPU, CUDA, TENSORRT], ids=lambda provider: provider.backend)
def test_recorded_options_give_the_same_engine_again(provider: Provider) -> None:
    recorded = recorded_options(provider, OPTIONS)
    assert recorded_options(provider, built_options(recorded)) == recorded
