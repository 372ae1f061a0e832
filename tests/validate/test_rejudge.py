"""A finished run judged by other gates gives what validating it with them would have given."""

import pytest

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.validate.rejudge import rejudge
from tests.report.engine_artifacts import make_profile
from tests.validate.deployment import WIDE_GATES, Deployment, deploy, failed, named


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Deployment, ValidationReport]:
    deployment = deploy(tmp_path_factory.mktemp("deployment"))
    return deployment, deployment.validate()


def again(deployed: tuple[Deployment, ValidationReport], gates: Gates) -> ValidationReport:
    deployment, report = deployed
    engine = EngineArtifact.read(deployment.folder / "sparse.engine.json")
    return rejudge(report, gates, sparse_engine=engine, certificate=deployment.certificate, profile=None)


def test_the_same_gates_give_the_same_report(deployed: tuple[Deployment, ValidationReport]) -> None:
    assert again(deployed, WIDE_GATES).to_bytes() == deployed[1].to_bytes()


@pytest.mark.parametrize(
    "gates",
    [
        Gates(accuracy_drop_points=0, flip_rate=0),
        Gates(accuracy_drop_points=100, flip_rate=1, require_interval=True),
        Gates(accuracy_drop_points=100, flip_rate=1, sparse_layers=1, certified_share=0.5, latency_ratio=1.0),
    ],
)
def test_other_gates_give_the_report_of_a_validation_with_them(
    deployed: tuple[Deployment, ValidationReport], gates: Gates
) -> None:
    assert again(deployed, gates).to_bytes() == deployed[0].validate(gates=gates).to_bytes()


def test_a_stricter_gate_fails_what_passed_and_back(deployed: tuple[Deployment, ValidationReport]) -> None:
    strict = again(deployed, Gates(accuracy_drop_points=100, flip_rate=0))
    assert (deployed[1].verdict, strict.verdict) == ("pass", "fail")
    assert failed(strict) == {"changed predictions"}
    assert again((deployed[0], strict), WIDE_GATES).verdict == "pass"


def test_what_no_gate_decides_stays_failed(deployed: tuple[Deployment, ValidationReport]) -> None:
    deployment, report = deployed
    broken = [
        check.model_copy(update={"verdict": "fail"}) if check.name == "finite outputs" else check for check in report.checks
    ]
    damaged = report.model_copy(update={"checks": tuple(broken)})
    assert again((deployment, damaged), WIDE_GATES).verdict == "fail"


def test_layers_outside_their_bounds_are_counted_anew(deployed: tuple[Deployment, ValidationReport]) -> None:
    deployment, report = deployed
    first = report.layers[0].model_copy(update={"verdict": "fail"})
    damaged = report.model_copy(update={"layers": (first, *report.layers[1:])})
    strict = again((deployment, damaged), WIDE_GATES)
    assert (strict.verdict, failed(strict)) == ("fail", {"layers outside their bounds"})
    allowed = again((deployment, damaged), WIDE_GATES.model_copy(update={"layerwise_violations": 1}))
    assert allowed.verdict == "pass"
    assert f"allowed by the gate: {first.layer}" in named(allowed, "layers outside their bounds").detail


def test_why_a_layer_is_open_is_kept(deployed: tuple[Deployment, ValidationReport]) -> None:
    deployment, report = deployed
    layers = (report.layers[0].model_copy(update={"verdict": "inconclusive"}), *report.layers[1:])
    reason = {"verdict": "inconclusive", "detail": "it is computed by Winograd"}
    checks = [
        check.model_copy(update=reason) if check.name == "layers outside their bounds" else check for check in report.checks
    ]
    found = again((deployment, report.model_copy(update={"layers": layers, "checks": tuple(checks)})), WIDE_GATES)
    assert found.verdict == "inconclusive"
    assert named(found, "layers outside their bounds").detail == "it is computed by Winograd"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"confidence": 0.99}, "the gates set confidence to 0.99, and the run measured with 0.95"),
        ({"conformal_seed": 7}, "the gates set conformal_seed to 7, and the run measured with 0"),
        ({"conformal_separate": True}, "leave conformal_separate out, or validate again with these gates"),
    ],
)
def test_gates_cannot_change_what_was_measured(
    deployed: tuple[Deployment, ValidationReport], options: dict[str, float], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        again(deployed, Gates(**options))


def test_artifacts_of_another_run_are_refused(deployed: tuple[Deployment, ValidationReport]) -> None:
    deployment, report = deployed
    engine = EngineArtifact.read(deployment.folder / "sparse.engine.json")
    certificate = deployment.certificate
    with pytest.raises(ArtifactError, match="the validation report is about another sparse engine"):
        other = engine.model_copy(update={"precision": "fp16"})
        rejudge(report, WIDE_GATES, sparse_engine=other, certificate=certificate, profile=None)
    with pytest.raises(ArtifactError, match="the validation report is about another certificate"):
        other_certificate = certificate.model_copy(update={"grid": 8})
        rejudge(report, WIDE_GATES, sparse_engine=engine, certificate=other_certificate, profile=None)
    with pytest.raises(ArtifactError, match="the profile report is about another dense engine"):
        gates = WIDE_GATES.model_copy(update={"latency_ratio": 1.0})
        rejudge(report, gates, sparse_engine=engine, certificate=certificate, profile=make_profile())
