"""A forecast beside what came out."""

import pytest

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.forecast import ConvolutionKind, Forecast, KindForecast
from masksparse_deploy.core.artifacts.timing import LayerTime, Speedup
from masksparse_deploy.report.forecast import forecast_view
from masksparse_deploy.report.formats import TIMES
from masksparse_deploy.report.render import render_report
from tests.report.artifacts import make_inputs
from tests.report.engine_artifacts import make_engine, make_profile
from tests.report.test_render import _text

KIND = ConvolutionKind(
    kernel=(3, 3),
    strides=(1, 1),
    dilations=(1, 1),
    pads=(1, 1, 1, 1),
    in_channels=32,
    out_channels=32,
    height=8,
    width=8,
    precision="fp16",
)


def speedup(ratio, half_width=0.01):
    return Speedup(ratio=ratio, interval=Interval(low=ratio - half_width, high=ratio + half_width, confidence=0.95))


def make_forecast(trial=1.30, **changes):
    profile, engine = make_profile(1.31, gpu=True), make_engine("sparse", gpu=True)
    gain = Interval(low=0.09, high=0.11, confidence=0.99)
    kinds = (
        KindForecast(
            kind=KIND,
            layers=("node_layer1.0.conv1", "node_layer1.0.conv2"),
            dense_ms=0.5,
            sparse_ms=0.4,
            gain_ms=0.1,
            gain_interval=gain,
            sparse_tactic="sm90_xmma_sparse",
            picked=True,
        ),
        KindForecast(kind=KIND.model_copy(update={"strides": (2, 2)}), layers=("node_layer2.0.conv1",), failure="refused"),
    )
    values = {
        "source_sha256": "0" * 64,
        "backend": profile.backend,
        "device": profile.device,
        "versions": {},
        "precision": engine.precision,
        "batch": 64,
        "threshold": 1.05,
        "network_ms": 1.9,
        "kinds": kinds,
        "skipped": {},
        "estimate": speedup(1.4),
        "trial": None if trial is None else speedup(trial),
        "worthwhile": True,
        "reason": "worth it: so it is",
        "remarks": ("a remark",),
    }
    return Forecast(**{**values, **changes})


def inputs_of(forecast, **changes):
    values = {"profile": make_profile(1.31, gpu=True), "sparse_engine": make_engine("sparse", gpu=True), **changes}
    return make_inputs(forecast=forecast, **values)


def times_of(engine, times):
    return tuple(
        LayerTime(engine=engine, name=name, onnx_nodes=nodes, tactic="", median_ms=median_ms, share=0.1)
        for name, nodes, median_ms in times
    )


def test_the_report_shows_both_with_their_intervals():
    text = _text(render_report(inputs_of(make_forecast())))
    assert "Worth it: so it is." in text and "a remark" in text
    assert f"estimate from the layers 1.40{TIMES} 1.39 to 1.41 95 %" in text
    assert f"trial of the network 1.30{TIMES} 1.29 to 1.31 95 %" in text
    assert f"measured after training 1.31{TIMES} 1.30 to 1.32 95 %" in text
    assert "The forecast agrees with what came out" in text
    assert "3x3, 32 to 32 channels, 8x8, fp16 2" in text and "3x3 stride 2, 32 to 32 channels, 8x8, fp16" in text


def test_without_a_forecast_nothing_is_said():
    assert "forecast" not in _text(render_report(make_inputs()))


@pytest.mark.parametrize(
    ("trial", "agrees", "words"),
    [
        (1.30, True, "agrees"),
        (1.60, False, "was too high: 1.60"),
        (1.10, False, "was too low: 1.10"),
        (None, False, f"was too high: 1.40{TIMES} (1.39 to 1.41) by the estimate"),
    ],
)
def test_a_wrong_forecast_is_called_so(trial, agrees, words):
    view = forecast_view(inputs_of(make_forecast(trial)))
    assert view is not None and view.agrees is agrees and words in view.conclusion


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batch": 1}, "batch 1 instead of 64"),
        ({"device": "another GPU"}, "device another GPU instead of"),
        ({"backend": "onnxruntime"}, "backend onnxruntime instead of"),
        ({"precision": "int8"}, "precision int8 instead of"),
        ({"estimate": None, "trial": None}, "Nothing was timed for it"),
    ],
)
def test_a_forecast_for_other_conditions_is_not_compared(changes, words):
    view = forecast_view(inputs_of(make_forecast(**changes)))
    assert view is not None and view.measured is None and view.agrees is None and words in view.conclusion


@pytest.mark.parametrize(
    ("profile", "words"),
    [(None, "have not been timed"), (make_profile(1.31, invalid_because=("throttled",), gpu=True), "is not valid")],
)
def test_what_was_not_timed_is_not_compared(profile, words):
    view = forecast_view(inputs_of(make_forecast(), profile=profile))
    assert view is not None and view.measured is None and words in view.conclusion


FORBIDDEN = times_of("forbidden", [("a", ("node_layer1.0.conv1", "relu"), 0.5), ("b", ("node_layer1.0.conv2",), 0.5)])


@pytest.mark.parametrize(
    ("sparse", "measured"),
    [
        ([("a", ("node_layer1.0.conv1",), 0.3), ("b", ("node_layer1.0.conv2",), 0.4)], 0.3),
        # both layers in one kernel: its time counts once
        ([("ab", ("node_layer1.0.conv1", "node_layer1.0.conv2"), 0.6)], 0.4),
        # one of them together with a layer of another kind, or nowhere: nothing can be said
        ([("a", ("node_layer1.0.conv1",), 0.3), ("b", ("node_layer1.0.conv2", "node_layer2.0.conv1"), 0.4)], None),
        ([("a", ("node_layer1.0.conv1",), 0.3)], None),
    ],
)
def test_gains_of_kinds_are_read_from_the_times_of_layers(sparse, measured):
    profile = make_profile(1.31, gpu=True).model_copy(update={"layers": (*FORBIDDEN, *times_of("sparse", sparse))})
    view = forecast_view(inputs_of(make_forecast(), profile=profile))
    assert view is not None
    kind, refused = view.kinds
    assert kind.predicted_ms == pytest.approx(0.2) and kind.masked_count == 2
    assert kind.measured_ms == (None if measured is None else pytest.approx(measured))
    assert refused.measured_ms is None and refused.predicted_ms == 0
