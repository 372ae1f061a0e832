"""What is forecast is the network in the precision of the deployment, wherever it comes from."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.config import EngineOptions, ForecastOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.forecast import run
from masksparse_deploy.pipeline.forecasting import forecast_model, forecast_onnx
from tests.forecast.machine import FakeBackend, is_kind, network
from tests.project import FACTORY, make_project

ENGINE = EngineOptions(backend="tensorrt", batch=4)


@pytest.fixture
def backend(monkeypatch: pytest.MonkeyPatch) -> FakeBackend:
    """Kinds take 1 ms and 0.4 ms less with sparse tactics; a network takes 4 ms and 0.4 ms less for its layers."""
    fake = FakeBackend(lambda model, allowed: (1.0 if is_kind(model) else 4.0) - 0.4 * allowed)
    monkeypatch.setattr(run, "choose_backend", lambda name: (fake, ""))
    return fake


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_an_fp32_file_is_brought_to_the_precision(tmp_path: Path, backend: FakeBackend, precision: Any) -> None:
    onnx.save(network(np.float32), tmp_path / "net.onnx")
    found = forecast_onnx(tmp_path / "net.onnx", ForecastOptions(precision=precision), ENGINE, out=tmp_path / "out")
    assert found.precision == precision
    assert {kind.kind.precision for kind in found.kinds} == {precision}
    assert {name for kind in found.kinds for name in kind.layers} == {"conv1", "conv2", "conv3"}
    assert found.worthwhile and found.trial is not None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["forecast.json", "forecast_times.json"]


@pytest.mark.slow
def test_a_pytorch_model_is_exported_for_every_version(tmp_path: Path, backend: FakeBackend) -> None:
    make_project(tmp_path)
    model = ModelOptions(factory=FACTORY, weights="model.safetensors")
    options = ForecastOptions(precision="fp16", image="3x8x8", trial=False)
    found = forecast_model(model, options, ENGINE, folder=tmp_path, out=tmp_path / "out")
    assert found.precision == "fp16" and len(found.kinds) == 3
    whole = next(built for built in backend.built if not is_kind(built))
    assert whole.opset_import[0].version == 17
    with pytest.raises(UsageError, match=r"forecast.image is missing: .* as 3x224x224"):
        forecast_model(model, ForecastOptions(), ENGINE, folder=tmp_path, out=tmp_path / "out")


def test_a_file_of_another_precision_is_not_brought_to_one(tmp_path: Path, backend: FakeBackend) -> None:
    onnx.save(network(np.float16), tmp_path / "net.onnx")
    with pytest.raises(
        UsageError, match=r"of precision fp16, and only FP32 files can be brought to int8; leave --precision out"
    ):
        forecast_onnx(tmp_path / "net.onnx", ForecastOptions(precision="int8"), ENGINE, out=tmp_path)


def test_an_open_height_is_told(tmp_path: Path, backend: FakeBackend) -> None:
    model = network(np.float32)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    onnx.save(model, tmp_path / "net.onnx")
    with pytest.raises(UsageError, match="export it with a fixed height and width"):
        forecast_onnx(tmp_path / "net.onnx", ForecastOptions(precision="int8"), ENGINE, out=tmp_path)
