"""A finished validation judged by other gates: nothing is run or measured again."""

from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import Check, ValidationReport
from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.validate.engine_gates import ENGINE_GATES, engine_gates
from masksparse_deploy.validate.gates import accuracy_gate, flip_gate, layerwise_gate
from masksparse_deploy.validate.verdict import overall_verdict

__all__ = ["rejudge"]


def rejudge(
    report: ValidationReport,
    gates: Gates,
    *,
    sparse_engine: EngineArtifact,
    certificate: Certificate,
    profile: ProfileReport | None,
) -> ValidationReport:
    """The report with every gate decided by `gates`; all other checks stay as they are.

    Args:
        report: of the run.
        gates: what is demanded now.
        sparse_engine: metadata of the sparse engine of that run.
        certificate: of that run.
        profile: of that run; None if its engines were not timed.

    Raises:
        ArtifactError: these are of different runs.
        UsageError: `gates` ask for intervals or quantiles that the run did not measure.
    """
    for what, recorded, found, stage in (
        ("sparse engine", report.sparse_engine_sha256, sparse_engine.digest, "validate"),
        ("certificate", report.certificate_sha256, certificate.digest, "validate"),
    ):
        if recorded != found:
            raise ArtifactError(
                f"the validation report is about another {what}: recorded digest {recorded}, the digest of what is there is "
                f"{found}; run 'masksparse {stage}' again"
            )
    _require_measured(report, gates)
    decided = {check.name: check for check in (accuracy_gate(report.accuracy, gates), flip_gate(report.accuracy, gates))}
    layers = layerwise_gate(report.layers, {}, gates)
    decided[layers.name] = layers
    checks = [_replaced(check, decided) for check in report.checks if check.name not in ENGINE_GATES]
    checks += engine_gates(
        gates,
        layers=report.survival,
        dense_engine_sha256=report.dense_engine_sha256,
        sparse_engine=sparse_engine,
        certificate=certificate,
        profile=profile,
    )
    return report.model_copy(update={"checks": tuple(checks), "verdict": overall_verdict(checks)})


def _replaced(check: Check, decided: dict[str, Check]) -> Check:
    found = decided.get(check.name, check)
    if found.verdict == check.verdict == "inconclusive":  # why is told by those who compared the layers
        return found.model_copy(update={"detail": check.detail})
    return found


def _require_measured(report: ValidationReport, gates: Gates) -> None:
    """Refuse options of measuring that are set to something else than the run used."""
    used: dict[str, object] = {"confidence": report.accuracy.flip_interval.confidence}
    if report.deviation is not None:
        used |= {
            "conformal_confidence": report.deviation.confidence,
            "conformal_seed": report.deviation.seed,
            "conformal_separate": report.accuracy.total == report.deviation.fresh_count,
        }
    for name in sorted(gates.model_fields_set & used.keys()):
        if getattr(gates, name) != used[name]:
            raise UsageError(
                f"the gates set {name} to {getattr(gates, name)}, and the run measured with {used[name]}: gates cannot change "
                f"what was measured; leave {name} out, or validate again with these gates"
            )
