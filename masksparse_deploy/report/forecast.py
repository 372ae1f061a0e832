"""A forecast held against what came out."""

from dataclasses import dataclass

from masksparse_deploy.core.artifacts.forecast import Forecast, KindForecast
from masksparse_deploy.core.artifacts.timing import ProfileReport, Speedup
from masksparse_deploy.report.formats import interval, times
from masksparse_deploy.report.inputs import ReportInputs

__all__ = ["ForecastView", "KindView", "forecast_view"]


@dataclass(frozen=True, kw_only=True)
class KindView:
    """A kind of layers: what all of them were to gain together, and what they did, in milliseconds; None where not known.

    `masked_count` of its layers carry a mask, None where that is not known.
    """

    kind: KindForecast
    predicted_ms: float
    measured_ms: float | None
    masked_count: int | None


@dataclass(frozen=True, kw_only=True)
class ForecastView:
    """What the report shows of a forecast.

    Attributes:
        forecast: as it was made.
        measured: the speedup that came out; None where it cannot be compared.
        conclusion: in words, whether the forecast was right, or why that cannot be said.
        agrees: None where that cannot be said.
        kinds: those that were timed.
    """

    forecast: Forecast
    measured: Speedup | None
    conclusion: str
    agrees: bool | None
    kinds: tuple[KindView, ...]


def forecast_view(inputs: ReportInputs) -> ForecastView | None:
    """The forecast of the inputs beside their profile; None without a forecast."""
    forecast, profile = inputs.forecast, inputs.profile
    if forecast is None:
        return None
    obstacle = _obstacle(forecast, inputs)
    kinds = tuple(_kind(kind, inputs, comparable=not obstacle) for kind in forecast.kinds)
    predicted = forecast.trial or forecast.estimate
    if obstacle or profile is None or predicted is None:
        return ForecastView(forecast=forecast, measured=None, conclusion=obstacle, agrees=None, kinds=kinds)
    agrees, conclusion = _compared("trial" if forecast.trial else "estimate", predicted, profile.speedup)
    return ForecastView(forecast=forecast, measured=profile.speedup, conclusion=conclusion, agrees=agrees, kinds=kinds)


def _obstacle(forecast: Forecast, inputs: ReportInputs) -> str:
    """Why forecast and profile cannot be compared, in words; "" if they can."""
    profile = inputs.profile
    if forecast.trial is None and forecast.estimate is None:
        return "Nothing was timed for it, so that there is no figure to compare."
    if profile is None:
        return "The engines have not been timed, so that nothing can be said of how good it was."
    if profile.invalid_because:
        return "The timing of the engines is not valid, so that nothing can be said of how good it was."
    engine = inputs.sparse_engine
    pairs = [
        ("backend", forecast.backend, profile.backend),
        ("device", forecast.device, profile.device),
        ("batch", forecast.batch, profile.conditions.batch),
        *([("precision", forecast.precision, engine.precision)] if engine is not None else []),
    ]
    other = [f"{name} {before} instead of {after}" for name, before, after in pairs if before != after]
    return f"It was made for other conditions ({', '.join(other)}) and cannot be compared." if other else ""


def _compared(what: str, predicted: Speedup, measured: Speedup) -> tuple[bool, str]:
    low, high = predicted.interval, measured.interval
    found = f"{times(predicted.ratio)} ({interval(low)}) by the {what}, and {times(measured.ratio)} ({interval(high)}) came out"
    if measured.interval.low > predicted.interval.high:
        return False, f"The forecast was too low: {found}."
    if measured.interval.high < predicted.interval.low:
        return False, f"The forecast was too high: {found}."
    return True, f"The forecast agrees with what came out: {found}; the intervals overlap."


def _kind(kind: KindForecast, inputs: ReportInputs, *, comparable: bool) -> KindView:
    bake, forecast = inputs.bake, inputs.forecast
    assert forecast is not None
    masked = None if bake is None else {layer.node for layer in bake.layers}
    others = {name for other in forecast.kinds for name in other.layers} - set(kind.layers)
    return KindView(
        kind=kind,
        predicted_ms=len(kind.layers) * kind.gain_ms,
        measured_ms=_measured_gain(kind, others, inputs.profile) if comparable and inputs.profile is not None else None,
        masked_count=None if masked is None else sum(name in masked for name in kind.layers),
    )


def _measured_gain(kind: KindForecast, others: set[str], profile: ProfileReport) -> float | None:
    """What the layers took less with sparse tactics than with the same weights without; None where engines do not tell."""
    forbidden, sparse = (_time_of(set(kind.layers), others, engine, profile) for engine in ("forbidden", "sparse"))
    return None if forbidden is None or sparse is None else forbidden - sparse


def _time_of(names: set[str], others: set[str], engine: str, profile: ProfileReport) -> float | None:
    """The time of an engine's layers that hold these nodes; None where one is in none, or together with `others`."""
    rows = [layer for layer in profile.layers if layer.engine == engine and names & set(layer.onnx_nodes)]
    held = {node for layer in rows for node in layer.onnx_nodes}
    if not names <= held or held & others:
        return None
    return sum(layer.median_ms for layer in rows)
