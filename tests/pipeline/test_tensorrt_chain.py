"""The whole chain with the TensorRT backend, whose module and CUDA runtime are stand-ins that compute with ONNX Runtime."""

from pathlib import Path

import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.sparse_tactics import SparseTactics
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.engine import select, tensorrt_backend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.pipeline.stages import STAGES
from tests.engine.computing_tensorrt import ComputingTensorRT
from tests.engine.fake_tensorrt import GPU, install
from tests.engine.timed_cuda import TimedCudart
from tests.project import make_project


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> TimedCudart:
    """A machine with a GPU and TensorRT."""
    cudart = TimedCudart()
    trt = ComputingTensorRT(cudart)
    modules = {"tensorrt": trt, "cuda.bindings.runtime": cudart}
    monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: modules[name])
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
    monkeypatch.setattr(select, "TensorRTBackend", lambda: TensorRTBackend(ask_driver=lambda: GPU))
    install(monkeypatch, trt)
    return cudart


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_auto_takes_every_stage_through_tensorrt(
    tmp_path: Path, gpu: TimedCudart, capsys: pytest.CaptureFixture[str], precision: str
) -> None:
    config = make_project(
        tmp_path,
        mask={"method": "magnitude"},
        bake={"precision": precision, "opset": 17},
        engine={"backend": "auto"},
        profile={"builds": 2, "cuda_graph": True},
    )
    out = tmp_path / "out"
    code = run(["deploy", str(config)])
    text = capsys.readouterr().out
    assert code == 0, text
    assert "TensorRT 10.16.1 on Fake GPU, found on this machine" in text

    for name in ("dense", "sparse", "sparse-layers"):
        engine = EngineArtifact.read(out / f"{name}.engine.json")
        assert (engine.backend, engine.precision, engine.findings) == ("tensorrt", precision, ())
    assert EngineArtifact.read(out / "dense.engine.json").sparse_kernels.startswith("no sparse tactic")
    assert EngineArtifact.read(out / "sparse.engine.json").sparse_kernels.startswith("sparse tactics in 3 of")

    profile = ProfileReport.read(out / "profile.json")
    assert profile.clock == "CUDA events, CUDA graphs"
    assert {(build.engine, build.number) for build in profile.builds} == {
        (role, number) for role in ("dense", "forbidden", "sparse") for number in (1, 2)
    }
    assert profile.speedup.ratio > 1.1
    assert profile.end_to_end is not None
    assert {row.engine for row in profile.layers} == {"dense", "forbidden", "sparse"}

    explained = [layer.status for layer in SparseTactics.read(out / "why_not_sparse.json").layers]
    assert explained.count("sparse") == 3

    report = ValidationReport.read(out / "validation.json")
    assert report.verdict == "pass"
    assert {layer.verdict for layer in report.layers} == {"pass"}
    assert (out / "report.html").stat().st_size > 0
    assert gpu.memory == {} and gpu.handles == {} and gpu.streams == 0

    assert run(["deploy", str(config)]) == 0
    assert capsys.readouterr().out.count("unchanged") == len(STAGES) - 1
