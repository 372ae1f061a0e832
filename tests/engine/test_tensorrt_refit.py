"""New weights into TensorRT's engines, by its parser or by name, against stand-ins."""

import shutil
from pathlib import Path

import pytest

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.engine import tensorrt_backend
from masksparse_deploy.engine.refit.graphs import changed_constants
from masksparse_deploy.engine.refit.run import refit
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.engine.tensorrt_log import kept_messages
from masksparse_deploy.engine.tensorrt_refit import refit_plan
from masksparse_deploy.graph.reader import read_graph
from tests.engine.fake_tensorrt import GPU, FakeCudart, FakeTensorRT, install
from tests.engine.refit.networks import write_new, write_old


@pytest.fixture(params=["8.6.0", "10.16.1", "11.4.0"])
def trt(request: pytest.FixtureRequest, tmp_path: Path) -> FakeTensorRT:
    module = FakeTensorRT(request.param)
    assert module.engine is not None
    module.engine.weights = {name: array.size for name, array in read_graph(write_old(tmp_path)).constants.items()}
    return module


def put(trt: FakeTensorRT, folder: Path) -> bytes:
    source = read_source(write_new(folder))
    changed = changed_constants(read_graph(folder / "old.onnx"), source.graph)
    with kept_messages(trt) as (logger, messages):
        return refit_plan(trt, logger, messages, trt.engine, source, changed)


def test_all_weights_are_given(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    assert put(trt, tmp_path) == b",".join(sorted(name.encode() for name in trt.engine.weights))


def test_an_engine_not_built_for_it(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    trt.engine.refittable = False
    with pytest.raises(UsageError, match=r"build it again with --refit \(engine\.refit: true\)"):
        put(trt, tmp_path)


def test_weights_that_tensorrt_wants_besides(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    trt.engine.weights["tmp_weight_2"] = 4
    with pytest.raises(ArtifactError, match="needs more weights than the file has: tmp_weight_2"):
        put(trt, tmp_path)


def test_weights_that_have_no_place(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    del trt.engine.weights["fc.weight"]
    if trt.__version__ == "8.6.0":
        with pytest.raises(ArtifactError, match=r"no place for new values of fc\.weight: it joined them"):
            put(trt, tmp_path)
    else:  # the parser knows what became of them
        assert b"fc.weight" not in put(trt, tmp_path)


def test_weights_of_another_count(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    trt.engine.weights["fc.bias"] = 11
    words = "refuses the new values of fc.bias" if trt.__version__ == "8.6.0" else r"fc \[Gemm\]: weights of another count"
    with pytest.raises(ArtifactError, match=words):
        put(trt, tmp_path)


def test_what_tensorrt_refuses_at_the_end(trt: FakeTensorRT, tmp_path: Path) -> None:
    assert trt.engine is not None
    trt.engine.takes_weights = False
    with pytest.raises(ArtifactError, match="refuses the new weights: no reason given"):
        put(trt, tmp_path)


@pytest.fixture
def engine(trt: FakeTensorRT, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    modules = {"tensorrt": trt, "cuda.bindings.runtime": FakeCudart()}
    monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: modules[name])
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(tensorrt_backend, "installed_versions", lambda *names: {"tensorrt": trt.__version__})
    install(monkeypatch, trt)
    options = EngineOptions(backend="tensorrt", batch=4, refit=True)
    TensorRTBackend(ask_driver=lambda: GPU).build(tmp_path / "old.onnx", tmp_path, options, name="old")
    return tmp_path / "old.engine.json"


def test_the_backend_writes_the_new_engine(engine: Path, tmp_path: Path) -> None:
    backend = TensorRTBackend(ask_driver=lambda: GPU)
    new, folder = write_new(tmp_path), tmp_path / "out"
    changed = changed_constants(read_graph(tmp_path / "old.onnx"), read_graph(new))
    artifact = backend.refit(engine, new, folder, name="new", changed=changed)
    old = EngineArtifact.read(engine)
    assert EngineArtifact.read(folder / "new.engine.json") == artifact
    assert artifact.plan_sha256 == sha256_bytes((folder / "new.plan").read_bytes()) != old.plan_sha256
    assert (artifact.refitted_from_sha256, artifact.options) == (old.plan_sha256, old.options)
    assert artifact.source_sha256 == read_graph(new).sha256


def test_what_the_builder_told_of_tactics_goes_along(engine: Path, tmp_path: Path, trt: FakeTensorRT) -> None:
    told = "(Sparsity) Found 1 layer(s) eligible to use sparse tactics: conv"
    trt.told = (("info", told),)
    backend = TensorRTBackend(ask_driver=lambda: GPU)
    options = EngineOptions(backend="tensorrt", batch=4, refit=True)
    backend.build(tmp_path / "old.onnx", tmp_path, options, name="old")
    artifact = backend.refit(engine, tmp_path / "old.onnx", tmp_path / "out", name="new", changed=())
    assert artifact.build_log == "new.build.log"
    assert (tmp_path / "out" / "new.build.log").read_text() == told + "\n"


def test_an_engine_that_computes_something_else_is_caught(engine: Path, tmp_path: Path, trt: FakeTensorRT) -> None:
    """The stand-in computes its input plus one, whatever weights it is given."""
    assert trt.engine is not None
    backend = TensorRTBackend(ask_driver=lambda: GPU)
    with pytest.raises(ArtifactError, match=r"output logits is \(16, 3, 8, 8\), that of its file \(16, 10\)"):
        refit(engine, tmp_path / "old.onnx", write_new(tmp_path), tmp_path / "out", name="new", backend=backend)
    assert list((tmp_path / "out").iterdir()) == []


def test_without_a_gpu_the_command_says_what_is_missing(tmp_path: Path, engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: False)
    shutil.copy(tmp_path / "old.onnx", tmp_path / "same.onnx")
    with pytest.raises(MachineError, match=r"backend tensorrt does not work here: .*not installed: tensorrt") as error:
        refit(engine, tmp_path / "old.onnx", tmp_path / "same.onnx", tmp_path / "out", name="new")
    assert error.value.exit_code == 3
    assert not (tmp_path / "out").exists()
