"""The TensorRT backend on a real GPU; skipped without one, and failing there under MASKSPARSE_REQUIRE_GPU=1."""

from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.refit.run import refit
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from tests.engine.refit.networks import write_new, write_old
from tests.models.make_onnx import at_opset_17
from tests.requirements import requires

pytestmark = [pytest.mark.gpu, pytest.mark.trt, requires(gpu=True, tensorrt=True)]

# TensorRT's own kernels alone, so that cuBLAS and cuDNN, which older versions may use, need not be there.
OPTIONS = EngineOptions(batch=4, tactic_sources=("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS"))


def test_outputs_equal_those_of_the_cpu(old_opset_onnx: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
    outputs = []
    for backend in (TensorRTBackend(), OnnxRuntimeBackend()):
        backend.build(old_opset_onnx, tmp_path / backend.name, OPTIONS, name="dense")
        with backend.open(tmp_path / backend.name / "dense.engine.json") as session:
            outputs.append(session.run(images)["logits"])
            session.prepare(images[:4])()
    # sums of at most 288 float32 products, six layers deep, in another order: 6 * 288 * 2^-24 = 1e-4 of the largest magnitude
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-4 * np.abs(outputs[1]).max())


def test_layers_are_matched_to_onnx_nodes(old_opset_onnx: Path, tmp_path: Path) -> None:
    artifact = TensorRTBackend().build(old_opset_onnx, tmp_path, OPTIONS, name="dense")
    assert any(layer.onnx_nodes for layer in artifact.layers)
    assert artifact.device.kind == "cuda"


def test_new_weights_in_a_built_engine(tmp_path: Path) -> None:
    old, new = at_opset_17(write_old(tmp_path)), at_opset_17(write_new(tmp_path))
    TensorRTBackend().build(old, tmp_path, OPTIONS.model_copy(update={"refit": True}), name="old")
    report = refit(tmp_path / "old.engine.json", old, new, tmp_path / "out", name="new")
    assert not report.rebuilt
    assert report.relative_error <= report.tolerance < report.relative_change


def test_times_of_kernels_are_taken_from_the_last_build(old_opset_onnx: Path, tmp_path: Path) -> None:
    first, second = (TensorRTBackend().build(old_opset_onnx, tmp_path, OPTIONS, name="dense") for _ in range(2))
    assert first.timing_cache_sha256 == ""
    assert second.timing_cache_sha256 != ""
    assert not any("timing cache" in finding for finding in (*first.findings, *second.findings))


def test_the_engine_has_the_precision_of_its_file(old_opset_onnx: Path, tmp_path: Path) -> None:
    artifact = TensorRTBackend().build(old_opset_onnx, tmp_path, OPTIONS, name="dense")
    assert not any("precision" in finding for finding in artifact.findings)
