"""What a profile report says, in lines for a terminal."""

from rich.markup import escape

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.gpu_state import GpuState
from masksparse_deploy.core.artifacts.timing import EngineRatio, LayerTime, ProfileReport

__all__ = ["profile_lines"]

_SHOWN_LAYERS = 3
_COLOURS = {"faster": "green", "slower": "yellow", "not told apart": "default"}
_NAMES = {
    ("dense", "sparse"): "dense / sparse",
    ("forbidden", "sparse"): "sparse tactics forbidden / allowed",
    ("dense", "forbidden"): "dense / sparse tactics forbidden",
}


def profile_lines(report: ProfileReport) -> list[str]:
    """Latencies, the speedup with its interval, what is known of builds, layers and the GPU, and why a run is invalid."""
    dense, sparse, speedup = report.dense, report.sparse, report.speedup
    lines = [
        f"dense {dense.median_ms:.3f} ms   sparse {sparse.median_ms:.3f} ms   "
        f"speedup {speedup.ratio:.2f}x {_interval(speedup.interval)}   batch {report.conditions.batch}",
        f"p90 {dense.p90_ms:.3f} / {sparse.p90_ms:.3f} ms   p99 {dense.p99_ms:.3f} / {sparse.p99_ms:.3f} ms   "
        f"{dense.throughput_per_s:,.0f} / {sparse.throughput_per_s:,.0f} samples/s",
    ]
    if report.ratios:
        lines += _build_lines(report)
    if report.end_to_end is not None:
        whole = report.end_to_end
        lines.append(
            f"with transfers: dense {whole.dense.median_ms:.3f} ms   sparse {whole.sparse.median_ms:.3f} ms   "
            f"speedup {whole.speedup.ratio:.2f}x {_interval(whole.speedup.interval)}"
        )
    slowest = [layer for layer in report.layers if layer.engine == "sparse"][:_SHOWN_LAYERS]
    if slowest:
        lines.append("slowest layers: " + ", ".join(map(_layer, slowest)))
    if report.gpu is not None:
        lines.append(_gpu_line(report.gpu))
    if speedup.interval.high < 1 and not report.invalid_because:
        lines.append("[yellow]slower than the dense engine on this device[/]")
    return lines + [f"[yellow]invalid:[/] {escape(reason)}" for reason in report.invalid_because]


def _build_lines(report: ProfileReport) -> list[str]:
    """Each ratio with what may be concluded, and between what it lies from build to build."""
    count = sum(build.engine == "dense" for build in report.builds)
    confidence = report.ratios[0].interval.confidence
    builds = "one build of each engine" if count == 1 else f"{count} builds of each engine"
    where = f" on {escape(report.device)}, {report.architecture}" if report.architecture else ""
    lines = [f"{report.clock}{where}; {builds}, intervals of {100 * confidence:.3g} % confidence"]
    return lines + [_ratio_line(ratio) for ratio in report.ratios if (ratio.slower, ratio.faster) != ("dense", "sparse")]


def _ratio_line(ratio: EngineRatio) -> str:
    colour = _COLOURS[ratio.conclusion]
    low, high = ratio.of_builds[0], ratio.of_builds[-1]
    spread = f"   {low:.2f} to {high:.2f} from build to build" if len(ratio.of_builds) > 1 else ""
    name = _NAMES[(ratio.slower, ratio.faster)]
    return f"{name}: {ratio.ratio:.2f}x {_interval(ratio.interval)} [{colour}]{ratio.conclusion}[/]{spread}"


def _layer(layer: LayerTime) -> str:
    return f"{escape(layer.name)} {layer.median_ms:.4f} ms ({100 * layer.share:.0f} %)"


def _gpu_line(state: GpuState) -> str:
    """Between what the readings lie, as far as the driver tells."""
    spans = (
        ([reading.sm_clock_mhz for reading in state.under_load], " MHz", state.highest_sm_clock_mhz),
        ([reading.temperature_c for reading in state.under_load], " C", None),
        ([reading.power_w for reading in state.under_load], " W", state.power_limit_w),
    )
    words = []
    for values, unit, limit in spans:
        told = [value for value in values if value is not None]
        if told:
            of_limit = f" (of {limit:.0f})" if limit is not None else ""
            words.append(f"{min(told):.0f} to {max(told):.0f}{unit}{of_limit}")
    if state.mig:
        words.append("a MIG slice: other slices share its clocks and power")
    return f"GPU, {len(state.under_load)} readings under load: {', '.join(words) or 'the driver tells nothing'}"


def _interval(interval: Interval) -> str:
    # The opening bracket would start rich markup.
    return escape(f"[{interval.low:.2f}, {interval.high:.2f}]")
