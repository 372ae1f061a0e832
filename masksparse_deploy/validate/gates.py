"""What the user demands before deployment, decided from the measured figures."""

from collections.abc import Mapping

from masksparse_deploy.core.artifacts.document import Interval, Verdict
from masksparse_deploy.core.artifacts.validation import AccuracyComparison, Check, LayerDeviation
from masksparse_deploy.core.config import Gates

__all__ = ["accuracy_gate", "flip_gate", "layerwise_gate"]


def accuracy_gate(accuracy: AccuracyComparison, gates: Gates) -> Check:
    """The measured accuracy drop against the gate, in percentage points."""
    verdict, remark = _gated(accuracy.drop_points, accuracy.drop_interval, gates.accuracy_drop_points, gates.require_interval)
    interval = accuracy.drop_interval
    return Check(
        name="accuracy drop",
        measured=accuracy.drop_points,
        bound=None,
        tolerance=gates.accuracy_drop_points,
        unit="percentage points",
        verdict=verdict,
        detail=(
            f"{accuracy.dense_correct} of {accuracy.total} right before, {accuracy.sparse_correct} after; "
            f"{100 * interval.confidence:.4g} % interval {interval.low:.2f} to {interval.high:.2f} points; {remark}"
        ),
    )


def flip_gate(accuracy: AccuracyComparison, gates: Gates) -> Check:
    """The share of samples whose top-1 class changed against the gate."""
    verdict, remark = _gated(accuracy.flip_rate, accuracy.flip_interval, gates.flip_rate, gates.require_interval)
    interval = accuracy.flip_interval
    return Check(
        name="changed predictions",
        measured=accuracy.flip_rate,
        bound=None,
        tolerance=gates.flip_rate,
        unit="share of samples",
        verdict=verdict,
        detail=(
            f"{accuracy.disagreement_count} of {accuracy.total} predictions changed; "
            f"{100 * interval.confidence:.4g} % interval {100 * interval.low:.2f} to {100 * interval.high:.2f} %; {remark}"
        ),
    )


def layerwise_gate(layers: tuple[LayerDeviation, ...], doubts: Mapping[str, str], gates: Gates) -> Check:
    """The number of changed layers outside their proved bounds against the gate.

    Args:
        layers: all layers of the certificate.
        doubts: node of each inconclusive layer -> why no bound decides there.
        gates: the user's.
    """
    failed = [layer.layer for layer in layers if layer.verdict == "fail"]
    open_ones = [layer for layer in layers if layer.verdict == "inconclusive"]
    verdict: Verdict = "pass"
    if len(failed) > gates.layerwise_violations:
        verdict, detail = "fail", f"outside their bounds: {', '.join(failed)}"
    elif not layers:
        verdict, detail = "inconclusive", "no layer was changed, so no layer was compared"
    elif open_ones:
        reasons = "; ".join(f"{layer.layer}: {doubts.get(layer.node, 'not covered')}" for layer in open_ones)
        verdict, detail = "inconclusive", f"a bound that does not cover the kernel in use decides nothing: {reasons}"
    else:
        detail = f"{len(layers) - len(failed)} of {len(layers)} changed layers are within their proved bounds"
        if failed:
            detail += f"; allowed by the gate: {', '.join(failed)}"
    return Check(
        name="layers outside their bounds",
        measured=float(len(failed)) if layers else None,
        bound=None,
        tolerance=float(gates.layerwise_violations),
        unit="layers",
        verdict=verdict,
        detail=detail,
    )


def _gated(measured: float, interval: Interval, gate: float, require_interval: bool) -> tuple[Verdict, str]:
    """The measured figure decides; where the interval must meet the gate as well, its upper end can take a pass away."""
    if measured > gate:
        return "fail", f"more than the gate of {gate:g} allows"
    if interval.high <= gate:
        return "pass", f"the whole interval meets the gate of {gate:g}"
    if require_interval:
        return "inconclusive", f"meets the gate of {gate:g}, but the interval does not: more samples are needed"
    return "pass", f"meets the gate of {gate:g}; the interval reaches beyond it"
