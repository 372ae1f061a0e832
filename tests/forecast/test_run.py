"""The forecast as a whole, on a machine made of numbers and on ONNX Runtime."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.forecast import Forecast
from masksparse_deploy.core.config import EngineOptions, ForecastOptions
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.forecast.run import CACHE_NAME, REPORT_NAME, forecast
from tests.forecast.machine import DENSE_TACTIC, SPARSE_TACTIC, FakeBackend, is_kind, network

OPTIONS = ForecastOptions(rounds=20, inferences_per_round=2)
ENGINE = EngineOptions(batch=4)
# Of the network below: two layers of one kind at 1 ms, one of another at 0.5 ms, in 4 ms.
NETWORK_MS, KIND_MS, STRIDED_MS, SAVED = 4.0, 1.0, 0.5, 0.4


def kernel(model: onnx.ModelProto) -> int:
    weight = next(tensor for tensor in model.graph.initializer if tensor.name == "layer.weight")
    return int(weight.dims[2])


def gaining(network_saves: float = 2 * SAVED) -> Any:
    """3x3 layers take 0.4 ms less with a sparse tactic, 1x1 layers gain nothing; the network takes `network_saves` less."""

    def latency_ms(model: onnx.ModelProto, allowed: bool) -> float:
        if not is_kind(model):
            return NETWORK_MS - allowed * network_saves
        return KIND_MS - allowed * SAVED if kernel(model) == 3 else STRIDED_MS

    return latency_ms


@pytest.fixture
def path(tmp_path: Path) -> Path:
    onnx.save(network(), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def run(path: Path, backend: FakeBackend, options: ForecastOptions = OPTIONS, **changes: Any) -> Forecast:
    return forecast(path, options, ENGINE, out=path.parent, backend=backend, **changes)


def test_the_layers_gains_are_added_up(path: Path) -> None:
    found = run(path, FakeBackend(gaining()))
    assert found.estimate is not None and found.trial is not None and found.network_ms is not None
    # the noise of 0.1 % of 1 ms in each of two gains, over 3.2 ms, is below 0.2 %
    assert found.estimate.ratio == pytest.approx(NETWORK_MS / (NETWORK_MS - 2 * SAVED), rel=2e-3)
    assert found.estimate.interval.low <= found.estimate.ratio <= found.estimate.interval.high
    assert found.trial.ratio == pytest.approx(1.25, rel=2e-3)
    square, strided = found.kinds
    assert (square.layers, strided.layers) == (("conv1", "conv2"), ("conv3",))
    assert (square.picked, square.dense_tactic, square.sparse_tactic) == (True, DENSE_TACTIC, SPARSE_TACTIC)
    assert square.gain_ms == pytest.approx(SAVED, rel=5e-3) and square.gain_interval is not None
    assert square.kind.in_channels == square.kind.out_channels == 8 and square.kind.height == square.kind.width == 8
    assert (strided.picked, strided.gain_ms, strided.gain_interval) == (False, 0.0, None)
    assert strided.kind.strides == (2, 2) and strided.kind.kernel == (1, 1)
    assert found.worthwhile and found.reason.startswith("worth it: the network with half of its weights cut was timed at 1.25x")
    assert found.skipped["stem"] == "3 input channels, not a multiple of 4"
    assert found.skipped["depthwise"] == "grouped convolutions (8 groups) have no sparse kernel"
    assert found.skipped["fc"] == "only two-dimensional convolutions are forecast"
    assert len(found.remarks) == 1
    assert found.remarks[0].startswith("the sparse kernels of 2 layers add up in FP16 where the dense ones add up in FP32")
    assert Forecast.read(path.parent / REPORT_NAME) == found


def test_gains_that_the_network_does_not_show_do_not_count(path: Path) -> None:
    found = run(path, FakeBackend(gaining(network_saves=0.04)))
    assert found.estimate is not None and found.estimate.interval.low > 1.2
    assert not found.worthwhile
    assert found.reason.startswith("don't bother: the network with half of its weights cut was timed at 1.01x")
    assert "below the threshold of 1.05x" in found.reason
    assert "the layers' gains add up to 1.25x, and the network shows 1.01x" in found.remarks[1]


def test_without_a_trial_the_estimate_decides(path: Path) -> None:
    backend = FakeBackend(gaining())
    found = run(path, backend, OPTIONS.model_copy(update={"trial": False, "threshold": 1.3}))
    assert found.trial is None and not found.worthwhile
    assert found.reason.startswith("don't bother: the network is estimated at 1.25x")
    assert sum(not is_kind(model) for model in backend.built) == 1


def test_layers_that_gain_more_than_the_network_takes_tell_nothing(path: Path) -> None:
    def latency_ms(model: onnx.ModelProto, allowed: bool) -> float:
        return 0.5 if not is_kind(model) else gaining()(model, allowed)

    found = run(path, FakeBackend(latency_ms), OPTIONS.model_copy(update={"trial": False}))
    assert found.estimate is None and found.worthwhile
    assert "add up to more than the network takes" in found.reason


def test_a_second_run_times_nothing_and_says_the_same(path: Path) -> None:
    first, backend = run(path, FakeBackend(gaining())), FakeBackend(gaining())
    second = run(path, backend)
    assert backend.built == []
    assert [kind.from_cache for kind in (*first.kinds, *second.kinds)] == [False, False, True, True]
    assert (second.estimate, second.trial, second.reason) == (first.estimate, first.trial, first.reason)


@pytest.mark.parametrize("change", ["device", "version", "threads", "rounds"])
def test_times_of_another_device_version_or_option_are_not_taken(path: Path, change: str) -> None:
    run(path, FakeBackend(gaining()))
    backend = FakeBackend(gaining(), device="another GPU" if change == "device" else "a fake GPU")
    backend.version = "11.4.0" if change == "version" else "10.16.1"
    engine = EngineOptions(batch=8) if change == "threads" else ENGINE
    rounds = 25 if change == "rounds" else 20
    found = forecast(path, OPTIONS.model_copy(update={"rounds": rounds}), engine, out=path.parent, backend=backend)
    assert len(backend.built) == 6
    assert not any(kind.from_cache for kind in found.kinds)


def test_a_damaged_file_of_times_is_set_aside(path: Path) -> None:
    run(path, FakeBackend(gaining()))
    (path.parent / CACHE_NAME).write_text("{}")
    found = run(path, FakeBackend(gaining()))
    assert "forecast_times.json.damaged" in found.remarks[0]


def test_a_layer_that_the_runtime_refuses_counts_as_dense(path: Path) -> None:
    def latency_ms(model: onnx.ModelProto, allowed: bool) -> float:
        return -1.0 if is_kind(model) and kernel(model) == 3 else gaining(0.0)(model, allowed)

    found = run(path, FakeBackend(latency_ms))
    assert found.estimate is not None and found.estimate.ratio == 1.0
    refused = next(kind for kind in found.kinds if kind.failure)
    assert (refused.failure, refused.dense_ms, refused.gain_ms) == ("refused by the fake runtime", None, 0.0)
    assert found.remarks == ("2 layers could not be timed and count as dense: refused by the fake runtime",)


@pytest.mark.parametrize("graphs", [True, False])
def test_engines_that_cannot_be_recorded_as_graphs_are_all_launched_kernel_by_kernel(path: Path, graphs: bool) -> None:
    backend = FakeBackend(gaining(), graphs=graphs)
    run(path, backend)
    assert backend.replayed == [graphs] * 6


def test_half_of_the_weights_of_eligible_layers_are_cut_for_the_trial(path: Path) -> None:
    backend = FakeBackend(gaining())
    run(path, backend)
    dense, cut = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        for model in backend.built
        if not is_kind(model)
    )
    for name, weight in dense.items():
        masked = name in ("conv1.weight", "conv2.weight", "conv3.weight")
        keep = NMPattern(n=2, m=4).keep_largest(np.abs(weight), group_axis=1) if masked else np.ones(weight.shape, bool)
        np.testing.assert_array_equal(cut[name], np.where(keep, weight, 0))


def test_onnx_runtime_has_no_sparse_kernels_and_nothing_is_timed(path: Path) -> None:
    found = forecast(path, OPTIONS, EngineOptions(backend="onnxruntime", batch=4), out=path.parent)
    assert not found.worthwhile and found.kinds == () and found.network_ms is None
    assert found.reason.startswith("don't bother: this runtime has no 2:4 kernels") and "masksparse rewrite" in found.reason
    assert not (path.parent / CACHE_NAME).exists()


def test_fp32_has_no_sparse_kernels_and_nothing_is_timed(tmp_path: Path) -> None:
    onnx.save(network(np.float32), tmp_path / "net.onnx")
    backend = FakeBackend(gaining())
    found = run(tmp_path / "net.onnx", backend)
    assert not found.worthwhile and backend.built == []
    assert "give --precision fp16 or int8" in found.reason
    assert "it computes in fp32" in found.skipped["conv1"]


def test_a_network_without_such_layers_is_told_why(tmp_path: Path) -> None:
    onnx.save(network(channels=6), tmp_path / "net.onnx")
    found = run(tmp_path / "net.onnx", FakeBackend(gaining()))
    assert "none of its 6 layers with weights can run a sparse kernel (3 input channels, not a multiple of 4; 6" in found.reason
