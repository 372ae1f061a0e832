"""The backend's own logic, against stand-ins for TensorRT and CUDA; what TensorRT really does is tested on a GPU."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.artifacts.engines import DeviceFacts
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.plans import built_options
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.engine.tensorrt_log import kept_messages
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


def test_what_the_builder_tells_of_tactics_is_kept(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    told = "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: conv"
    trt.told = (("info", told), ("info", "Using cublas as a tactic source"))
    artifact = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert artifact.build_log == "dense.build.log"
    assert (tmp_path / "dense.build.log").read_text() == told + "\n"
    trt.told = ()
    assert backend.build(dense_onnx, tmp_path, OPTIONS, name="dense").build_log == ""
    assert not (tmp_path / "dense.build.log").exists()


def test_progress_ends_at_the_total(dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT) -> None:
    told: list[tuple[str, int, int]] = []
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense", progress=lambda *step: told.append(step))
    assert [step[1:] for step in told if step[0] == "build dense"] == [(0, 2), (1, 2), (2, 2)]
    assert any(step[0] == "build dense: Timing kernels" for step in told)
    del trt.IProgressMonitor  # as in TensorRT 8.6
    told.clear()
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense", progress=lambda *step: told.append(step))
    assert told == [("build dense", 0, 2), ("build dense", 1, 2), ("build dense", 2, 2)]


def test_times_of_kernels_are_kept_between_builds(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    trt.times = b"conv 0.2"
    first = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert first.timing_cache_sha256 == ""
    trt.times = b"pool 0.1"
    second = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert second.timing_cache_sha256 == sha256_bytes(b"conv 0.2")
    trt.refused_times = b"conv 0.2\npool 0.1"
    third = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert third.timing_cache_sha256 == ""
    (finding,) = [text for text in third.findings if "timing cache" in text]
    assert "is not accepted by TensorRT (Failed to deserialize timing cache. Returning an empty timing cache.)" in finding
    (folder,) = [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    assert folder.name == "timing_cache"
    assert sorted(path.suffix for path in folder.iterdir()) == [".damaged", ".lock", ".timing"]


def test_an_engine_outlives_times_that_cannot_be_kept(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes) -> None:
        raise OutputError(f"cannot write {path}: no space left on device")

    monkeypatch.setattr("masksparse_deploy.engine.timing_cache.write_atomic", full)
    built = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert (tmp_path / built.plan).is_file()
    (finding,) = [text for text in built.findings if "times of kernels were not kept" in text]
    assert finding.endswith("no space left on device")


def test_builds_without_kept_times(dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT) -> None:
    options = OPTIONS.model_copy(update={"timing_cache": NO_TIMING_CACHE})
    assert backend.build(dense_onnx, tmp_path, options, name="dense").timing_cache_sha256 == ""
    assert not [entry for entry in tmp_path.iterdir() if entry.is_dir()]
    elsewhere = OPTIONS.model_copy(update={"timing_cache": str(tmp_path / "shared")})
    backend.build(dense_onnx, tmp_path, elsewhere, name="dense")
    assert list((tmp_path / "shared").glob("*.timing"))


def test_an_engine_of_another_precision_is_told(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    assert trt.engine is not None
    nodes = ["stem", "layer1.conv1", "layer1.conv2", "layer2.conv1", "layer2.shortcut", "layer2.conv2", "fc"]
    entries = [
        {"Name": node, "Inputs": [{"Format/Datatype": "Half"}], "Metadata": f"[ONNX Layer: {node}]", "TacticName": "kernel"}
        for node in nodes
    ]
    trt.engine.inspected = json.dumps({"Layers": entries, "Bindings": []})
    with pytest.raises(ArtifactError, match=r"7 of 7 .*: stem in fp16 instead of fp32"):
        backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert not (tmp_path / "dense.plan").exists()
    entries[0]["Inputs"] = [{"Format/Datatype": "Float"}]
    trt.engine.inspected = json.dumps({"Layers": entries, "Bindings": []})
    artifact = backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    assert "6 of 7 layers with weights do not run in the file's precision" in artifact.findings[0]


@pytest.mark.parametrize(
    ("options", "version", "capability", "loads"),
    [
        ({}, "10.16.1", "9.0", True),
        ({}, "10.16.2", "9.0", False),
        ({"version_compatible": True}, "11.4.0", "9.0", True),
        ({"version_compatible": True}, "8.6.0", "9.0", False),
        ({"hardware_compatibility": "ampere-plus"}, "10.16.1", "8.0", True),
        ({"hardware_compatibility": "ampere-plus"}, "10.16.1", "7.5", False),
        ({"hardware_compatibility": "same-compute-capability"}, "10.16.1", "9.0", True),
        ({"hardware_compatibility": "same-compute-capability"}, "10.16.1", "8.0", False),
    ],
)
def test_where_a_compatible_plan_loads(
    dense_onnx: Path,
    tmp_path: Path,
    backend: TensorRTBackend,
    trt: FakeTensorRT,
    options: dict[str, str | bool],
    version: str,
    capability: str,
    loads: bool,
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS.model_copy(update=options), name="dense")
    trt.__version__ = version
    name = "Fake GPU" if options.get("hardware_compatibility") is None else "Another GPU"
    device = DeviceFacts(kind="cuda", name=name, details={"compute_capability": capability})
    elsewhere = TensorRTBackend(ask_driver=lambda: DriverAnswer(device))
    if not loads:
        with pytest.raises(ArtifactError, match="was built for Fake GPU"):
            elsewhere.open(tmp_path / "dense.engine.json").__enter__()
        return
    with elsewhere.open(tmp_path / "dense.engine.json"):
        assert trt.host_code_allowed == options.get("version_compatible", False)


@pytest.mark.parametrize("sources", [None, (), ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")])
def test_recorded_options_give_the_same_engine_again(sources: tuple[str, ...] | None) -> None:
    options = EngineOptions(batch=4, smallest_batch=2, tuned_image="64x64", refit=True, tactic_sources=sources)
    recorded = recorded_options(options)
    assert recorded_options(built_options(recorded)) == recorded
    assert built_options(recorded).tactic_sources == sources


def test_a_batch_that_is_too_small_is_filled_up(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS.model_copy(update={"smallest_batch": 3}), name="dense")
    images = np.ones((5, 3, 8, 8), np.float32)
    with backend.open(tmp_path / "dense.engine.json") as session:
        assert trt.engine is not None
        trt.engine.smallest_batch = 3
        np.testing.assert_array_equal(session.run(images)["logits"], images + 1)


def test_a_plan_that_tensorrt_cannot_load(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT
) -> None:
    backend.build(dense_onnx, tmp_path, OPTIONS, name="dense")
    trt.engine = None
    with pytest.raises(ArtifactError, match=r"cannot load .*dense\.plan: no reason given; run"):
        backend.open(tmp_path / "dense.engine.json").__enter__()


@pytest.mark.parametrize("part", ["Builder", "Runtime"])
def test_why_tensorrt_does_not_begin_is_told(
    dense_onnx: Path, tmp_path: Path, backend: TensorRTBackend, trt: FakeTensorRT, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def no_object(logger: Any) -> None:
        logger.log("warning", "CUDA initialization failure with error: 35")  # as 8.6.0 does
        raise TypeError("pybind11::init(): factory function returned nullptr")

    monkeypatch.setattr(trt, part, no_object)
    with pytest.raises(MachineError, match="does not work on this machine: CUDA initialization failure with error: 35"):
        backend.build(dense_onnx, tmp_path, EngineOptions(timing_cache="none"), name="dense")


def test_what_an_engine_says_is_kept_for_it_while_others_are_open(trt: FakeTensorRT) -> None:
    with kept_messages(trt) as (logger, first):
        with kept_messages(trt) as (_, second):
            logger.log("error", "illegal memory access")
        logger.log("error", "later")
    logger.log("error", "to nobody")
    assert (first.errors, second.errors) == (["illegal memory access", "later"], ["illegal memory access"])
    assert first.reasons() == "illegal memory access; later"
