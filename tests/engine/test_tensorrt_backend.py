"""The backend's own logic, against stand-ins for TensorRT and CUDA; what TensorRT really does is tested on a GPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.engine.tensorrt_versions import recorded_options
from tests.engine.fake_tensorrt import GPU, INSPECTED, FakeCudart, FakeEngine, FakeTensorRT, install

OPTIONS = EngineOptions(backend="tensorrt", batch=4, workspace_mib=64)


@pytest.fixture
def cudart() -> FakeCudart:
    return FakeCudart()


@pytest.fixture
def trt() -> FakeTensorRT:
    return FakeTensorRT()


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch, trt: FakeTensorRT, cudart: FakeCudart) -> TensorRTBackend:
    modules = {"tensorrt": trt, "cuda.bindings.runtime": cudart}
    monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: modules[name])
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(tensorrt_backend, "installed_versions", lambda *names: {"tensorrt": trt.__version__})
    install(monkeypatch, trt)
    return TensorRTBackend(ask_driver=lambda: GPU)


def half(path: Path, folder: Path) -> Path:
    """The same file with weights in float16 (types of the graph are left alone: only the weights are looked at)."""
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float16), tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    onnx.save(model, folder / "half.onnx")
    return folder / "half.onnx"


def test_build_writes_plan_inspector_and_metadata(dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend) -> None:
    artifact = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert (tmp_path / "dense.plan").read_bytes() == b"plan"
    assert (tmp_path / "dense.inspector.json").read_text() == INSPECTED
    assert artifact.device == GPU.device
    assert artifact.sparse_kernels == "sparse tactics in 1 of 1 layers"
    assert artifact.options == recorded_options(OPTIONS)
    assert (artifact.options["batch"], artifact.options["sparse_tactics"], artifact.options["tf32"]) == (4, True, False)


@pytest.mark.parametrize("shape", [(-1, 3, 8, 8), (4, 3, 8, 8)], ids=["dynamic", "fixed"])
def test_run_and_prepare(
    dense_onnx: Path,
    tmp_path: Path,
    backend: TensorRTBackend,
    trt: FakeTensorRT,
    cudart: FakeCudart,
    shape: tuple[int, ...],
) -> None:
    trt.engine = FakeEngine(shape, ("images", "stem.out", "logits"))
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense", expose=("stem.out",))
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
    with backend.open(tmp_path / "dense.engine.json") as session:
        assert session.output_names == ("logits", "stem.out")
        assert session.input_shape == (None if shape[0] < 0 else 4, 3, 8, 8)
        np.testing.assert_array_equal(session.run(images)["logits"], images + 1)
        session.prepare(images[:4])()
        assert len(cudart.memory) == 3
        with pytest.raises(UsageError, match="do not fit"):
            session.run(images[:, :2])
    assert cudart.memory == {}
    assert cudart.streams == 0


def test_memory_is_freed_when_something_fails(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, cudart: FakeCudart
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    images = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(MachineError, match="cudaMalloc failed with 2"), backend.open(tmp_path / "dense.engine.json") as session:
        session.run(images)
        cudart.out_of_memory = True
        session.run(np.zeros((4, 3, 8, 8), np.float32))
    assert cudart.memory == {}
    assert cudart.streams == 0


def test_no_context_and_too_large_a_batch(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT, cudart: FakeCudart
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    with backend.open(tmp_path / "dense.engine.json") as session, pytest.raises(MachineError, match="a batch of 5"):
        session.prepare(np.zeros((5, 3, 8, 8), np.float32))
    assert trt.engine is not None
    trt.engine.create_execution_context = lambda: None  # type: ignore[method-assign]
    with pytest.raises(MachineError, match="execution context"), backend.open(tmp_path / "dense.engine.json"):
        pass
    assert cudart.streams == 0


def test_a_plan_of_another_gpu_or_version_is_refused(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    trt.__version__ = "11.4.0"
    with pytest.raises(ArtifactError, match=r"TensorRT 10\.16\.1; this is Fake GPU with TensorRT 11\.4\.0"):
        backend.open(tmp_path / "dense.engine.json").__enter__()


def test_a_plan_that_tensorrt_cannot_load(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    trt.engine = None
    with pytest.raises(ArtifactError, match="cannot load"):
        backend.open(tmp_path / "dense.engine.json").__enter__()
