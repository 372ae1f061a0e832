from pathlib import Path

import onnx
import pytest

from tests.models.make_onnx import residual_pair


@pytest.fixture(scope="session")
def dense_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dense.onnx"
    onnx.save(residual_pair()[0], path)
    return path
