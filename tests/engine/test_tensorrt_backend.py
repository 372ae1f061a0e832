"""The backend's own logic, against stand-ins for TensorRT and CUDA; what TensorRT really does is tested on a GPU."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.engine.tensorrt_build import build_plan
from tests.engine.fake_tensorrt import GPU, INSPECTED, FakeCudart, FakeEngine, FakeTensorRT

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


@pytest.mark.parametrize(("version", "flags"), [("8.6.0", 1), ("10.16.1", 2), ("11.4.0", 1)])
def test_the_network_is_strongly_typed_where_it_can_be(dense_onnx: Path, version: str, flags: int) -> None:
    trt = FakeTensorRT(version)
    assert build_plan(trt, None, read_source(dense_onnx), OPTIONS) == b"plan"
    assert ("network", flags) in trt.log
    assert ("set", "sparse") in trt.log
    assert ("clear", "tf32") in trt.log
    assert ("pool", "workspace", 64 << 20) in trt.log
    assert ("shape", "images", (1, 3, 8, 8), (4, 3, 8, 8), (4, 3, 8, 8)) in trt.log
    assert ("set", "fp16") not in trt.log


@pytest.mark.parametrize(("version", "needs_flag"), [("8.6.0", True), ("10.16.1", False), ("11.4.0", False)])
def test_a_half_precision_file_sets_the_flag_where_types_are_weak(
    dense_onnx: Path, tmp_path: Path, version: str, needs_flag: bool
) -> None:
    trt = FakeTensorRT(version)
    source = read_source(half(dense_onnx, tmp_path))
    assert source.precision == "fp16"
    build_plan(trt, None, source, OPTIONS)
    assert (("set", "fp16") in trt.log) == needs_flag


def test_a_precision_that_the_version_lacks(dense_onnx: Path) -> None:
    trt = FakeTensorRT("8.6.0")
    del trt.BuilderFlag.FP16
    source = read_source(dense_onnx)
    for precision in ("fp16", "bf16"):
        object.__setattr__(source, "precision", precision)
        with pytest.raises(MachineError, match=f"cannot build a file of precision {precision}"):
            build_plan(trt, None, source, OPTIONS)


def test_what_tensorrt_refuses_is_an_artifact_error(dense_onnx: Path, trt: FakeTensorRT) -> None:
    trt.plan = None
    with pytest.raises(ArtifactError, match="built no engine"):
        build_plan(trt, None, read_source(dense_onnx), OPTIONS)
    trt.parses = False
    with pytest.raises(ArtifactError, match="no importer for Foo"):
        build_plan(trt, None, read_source(dense_onnx), OPTIONS)


def test_exposed_tensors_become_outputs(dense_onnx: Path, trt: FakeTensorRT) -> None:
    build_plan(trt, None, read_source(dense_onnx, ("stem.out",)), OPTIONS)
    assert ("output", "stem.out") in trt.log
    source = read_source(dense_onnx, ("layer1.conv1.out",))
    with pytest.raises(UsageError, match=r"parser removed .* layer1\.conv1\.out"):
        build_plan(trt, None, source, OPTIONS)


def test_build_writes_plan_inspector_and_metadata(dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend) -> None:
    artifact = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert (tmp_path / "dense.plan").read_bytes() == b"plan"
    assert (tmp_path / "dense.inspector.json").read_text() == INSPECTED
    assert artifact.device == GPU.device
    assert artifact.sparse_kernels == "sparse tactics in 1 of 1 layers"
    assert artifact.options == {"batch": 4, "workspace_mib": 64, "sparse_weights": True, "tf32": False}


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
