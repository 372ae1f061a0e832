import shutil
from pathlib import Path

import onnx
import pytest

from tests.models.make_onnx import at_opset_17, residual_pair


@pytest.fixture(scope="session")
def dense_onnx(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "dense.onnx"
    onnx.save(residual_pair()[0], path)
    return path


@pytest.fixture(scope="session")
def old_opset_onnx(dense_onnx: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same for every TensorRT, 8.6 too."""
    return at_opset_17(shutil.copy(dense_onnx, tmp_path_factory.mktemp("old") / "dense.onnx"))
