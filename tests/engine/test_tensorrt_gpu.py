"""The TensorRT backend on a real GPU; skipped without one, and failing there under MASKSPARSE_REQUIRE_GPU=1."""

from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from tests.requirements import requires

pytestmark = [pytest.mark.gpu, pytest.mark.trt, requires(gpu=True, tensorrt=True)]


def test_outputs_equal_those_of_the_cpu(dense_onnx: Path, tmp_path: Path) -> None:
    images = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
    options = EngineOptions(batch=4)
    outputs = []
    for backend in (TensorRTBackend(), OnnxRuntimeBackend()):
        backend.build(dense_onnx, tmp_path / backend.name, options, name="dense")
        with backend.open(tmp_path / backend.name / "dense.engine.json") as session:
            outputs.append(session.run(images)["logits"])
            session.prepare(images[:4])()
    # sums of at most 288 float32 products, six layers deep, in another order: 6 * 288 * 2^-24 = 1e-4 of the largest magnitude
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=0, atol=1e-4 * np.abs(outputs[1]).max())


def test_layers_are_matched_to_onnx_nodes(dense_onnx: Path, tmp_path: Path) -> None:
    artifact = TensorRTBackend().build(dense_onnx, tmp_path, EngineOptions(batch=4), name="dense")
    assert any(layer.onnx_nodes for layer in artifact.layers)
    assert artifact.device.kind == "cuda"
