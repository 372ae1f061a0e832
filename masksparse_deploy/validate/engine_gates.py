"""Gates that decide only where the user sets them: speedup, sparse tactics, certified samples."""

from collections.abc import Sequence

from masksparse_deploy.core.artifacts.certificate import END_TO_END, Certificate
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.survival import LayerSurvival
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.errors import ArtifactError

__all__ = ["CERTIFIED", "ENGINE_GATES", "SPARSE_LAYERS", "SPEEDUP", "engine_gates"]

SPEEDUP = "speedup"
SPARSE_LAYERS = "sparse layers"
CERTIFIED = "certified samples"
ENGINE_GATES = (SPEEDUP, SPARSE_LAYERS, CERTIFIED)


def engine_gates(
    gates: Gates,
    *,
    layers: Sequence[LayerSurvival],
    dense_engine_sha256: str,
    sparse_engine: EngineArtifact,
    certificate: Certificate,
    profile: ProfileReport | None,
) -> list[Check]:
    """One check for each of these gates that is set; none for the others.

    Args:
        gates: what the user demands.
        layers: the masked layers.
        dense_engine_sha256: digest of the dense engine's metadata.
        sparse_engine: metadata of the sparse engine.
        certificate: bounds for the files of the two engines.
        profile: times of the two engines; None if they were not timed.

    Raises:
        ArtifactError: the profile is about other engines.
    """
    checks = []
    if gates.latency_ratio is not None:
        _require_same_engines(profile, dense_engine_sha256, sparse_engine.digest)
        checks.append(_speedup_gate(profile, gates.latency_ratio, require_interval=gates.require_interval))
    if gates.sparse_layers is not None or gates.sparse_layer_share is not None:
        checks.append(_sparse_layers_gate(layers, sparse_engine, gates))
    if gates.certified_share is not None:
        checks.append(_certified_gate(certificate, gates.certified_share))
    return checks


def _require_same_engines(profile: ProfileReport | None, dense_sha256: str, sparse_sha256: str) -> None:
    if profile is None:
        return
    for name, timed, deployed in (
        ("dense", profile.dense_engine_sha256, dense_sha256),
        ("sparse", profile.sparse_engine_sha256, sparse_sha256),
    ):
        if timed != deployed:
            raise ArtifactError(
                f"the profile report is about another {name} engine: recorded digest {timed}, the engine's digest is "
                f"{deployed}; run 'masksparse profile' again"
            )


def _speedup_gate(profile: ProfileReport | None, gate: float, *, require_interval: bool) -> Check:
    """The measured speedup decides; where the interval must meet the gate too, its lower end can take a pass away."""
    if profile is None:
        detail = "the engines were not timed: give the report of 'masksparse profile'"
        return _check(SPEEDUP, None, gate, "times", "inconclusive", detail)
    ratio, interval = profile.speedup.ratio, profile.speedup.interval
    verdict: Verdict = "pass"
    if profile.invalid_because:
        verdict, remark = "inconclusive", f"these times must not be used: {'; '.join(profile.invalid_because)}"
    elif ratio < gate:
        verdict, remark = "fail", f"less than the gate of {gate:g} demands"
    elif interval.low >= gate:
        remark = f"the whole interval meets the gate of {gate:g}"
    elif require_interval:
        verdict, remark = "inconclusive", f"meets the gate of {gate:g}, but the interval does not: more rounds are needed"
    else:
        remark = f"meets the gate of {gate:g}; the interval reaches below it"
    detail = (
        f"{ratio:.3f} times as fast as the dense engine on {profile.device}; {100 * interval.confidence:.4g} % interval "
        f"{interval.low:.3f} to {interval.high:.3f}; {remark}"
    )
    return _check(SPEEDUP, ratio, gate, "times", verdict, detail)


def _sparse_layers_gate(layers: Sequence[LayerSurvival], engine: EngineArtifact, gates: Gates) -> Check:
    """Decided by what is known of each layer: those that the runtime does not tell of could be either."""
    sparse = sum(layer.runs_sparse is True for layer in layers)
    unknown = sum(layer.runs_sparse is None for layer in layers)
    # A share of no layers is met by nothing, so at least one is needed.
    needed = max(gates.sparse_layers or 0, (gates.sparse_layer_share or 0) * len(layers), 1)
    demanded = [f"{gates.sparse_layers} layers"] if gates.sparse_layers is not None else []
    if gates.sparse_layer_share is not None:
        demanded.append(f"{100 * gates.sparse_layer_share:g} % of them")
    verdict: Verdict = "pass" if sparse >= needed else "inconclusive" if sparse + unknown >= needed else "fail"
    if not layers:
        verdict, detail = "inconclusive", "neither the sparse ONNX file nor a bake report marks a layer as masked"
    else:
        untold = f", of {unknown} the runtime does not tell" if unknown else ""
        detail = (
            f"{sparse} of {len(layers)} masked layers run a sparse tactic{untold}; demanded: {' and '.join(demanded)}; "
            f"{engine.sparse_kernels}"
        )
    return _check(SPARSE_LAYERS, float(sparse) if layers else None, float(needed), "layers", verdict, detail)


def _certified_gate(certificate: Certificate, gate: float) -> Check:
    """The claim that certifies the largest share of its samples decides."""
    shares = {
        claim.name: (claim.certified_count, claim.sample_count)
        for claim in certificate.claims
        if claim.name in END_TO_END and claim.certified_count is not None and claim.sample_count
    }
    if not shares:
        detail = "no end-to-end claim of the certificate tells how many samples it certifies"
        return _check(CERTIFIED, None, gate, "share of samples", "inconclusive", detail)
    name = max(shares, key=lambda key: shares[key][0] / shares[key][1])
    count, total = shares[name]
    detail = f"{name}: the class of {count} of {total} samples is proved to stay; demanded: {100 * gate:g} %"
    verdict: Verdict = "pass" if count >= gate * total else "fail"
    return _check(CERTIFIED, count / total, gate, "share of samples", verdict, detail)


def _check(name: str, measured: float | None, gate: float, unit: str, verdict: Verdict, detail: str) -> Check:
    return Check(name=name, measured=measured, bound=None, tolerance=gate, unit=unit, verdict=verdict, detail=detail)
