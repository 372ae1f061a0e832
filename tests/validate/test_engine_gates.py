"""The gates that are decided only where they are set."""

import pytest

from masksparse_deploy.core.artifacts.survival import LayerSurvival
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.validate.engine_gates import CERTIFIED, SPARSE_LAYERS, SPEEDUP, engine_gates
from tests.report.engine_artifacts import make_engine, make_profile
from tests.report.validation_artifacts import make_certificate, make_survival

ENGINE = make_engine("sparse")
DENSE = make_engine("dense").digest


def profiled(ratio: float, half_width: float = 0.01, invalid_because: tuple[str, ...] = ()) -> ProfileReport:
    engines = {"dense_engine_sha256": DENSE, "sparse_engine_sha256": ENGINE.digest}
    return make_profile(ratio, half_width, invalid_because).model_copy(update=engines)


def masked(*sparse: bool | None) -> tuple[LayerSurvival, ...]:
    layers = make_survival()
    return tuple(layer.model_copy(update={"runs_sparse": runs}) for layer, runs in zip(layers, sparse, strict=False))


def judged(
    gates: Gates,
    layers: tuple[LayerSurvival, ...] = (),
    profile: ProfileReport | None = None,
    certified: tuple[int, int] | None = (30, 100),
) -> list[Check]:
    certificate = make_certificate()
    counts = {"certified_count": None, "sample_count": None}
    first = counts if certified is None else {"certified_count": certified[0], "sample_count": certified[1]}
    claims = [claim.model_copy(update=counts) for claim in certificate.claims]
    claims[1] = claims[1].model_copy(update=first)
    return engine_gates(
        gates,
        layers=layers,
        dense_engine_sha256=DENSE,
        sparse_engine=ENGINE,
        certificate=certificate.model_copy(update={"claims": tuple(claims)}),
        profile=profile,
    )


def test_nothing_is_decided_unless_it_is_set() -> None:
    assert judged(Gates(), masked(False, False), profiled(0.5)) == []


def test_all_that_are_set_are_decided() -> None:
    gates = Gates(latency_ratio=1.2, sparse_layers=1, certified_share=0.2)
    names = [check.name for check in judged(gates, masked(True), profiled(1.3))]
    assert names == [SPEEDUP, SPARSE_LAYERS, CERTIFIED]


@pytest.mark.parametrize(
    ("profile", "require_interval", "verdict", "remark"),
    [
        (profiled(1.3), False, "pass", "the whole interval meets the gate of 1.2"),
        (profiled(1.3), True, "pass", "the whole interval meets"),
        (profiled(1.205), False, "pass", "the interval reaches below it"),
        (profiled(1.205), True, "inconclusive", "more rounds are needed"),
        (profiled(1.199), False, "fail", "less than the gate of 1.2 demands"),
        (profiled(1.199), True, "fail", "less than the gate of 1.2 demands"),
        (profiled(1.3, invalid_because=("the clock is too coarse",)), False, "inconclusive", "the clock is too coarse"),
        (profiled(0.9, invalid_because=("other load",)), False, "inconclusive", "must not be used: other load"),
        (None, False, "inconclusive", "the engines were not timed"),
    ],
)
def test_speedup(profile: ProfileReport | None, require_interval: bool, verdict: str, remark: str) -> None:
    (check,) = judged(Gates(latency_ratio=1.2, require_interval=require_interval), profile=profile)
    assert (check.verdict, check.tolerance) == (verdict, 1.2)
    assert remark in check.detail


def test_times_of_other_engines_are_refused() -> None:
    other = profiled(1.3).model_copy(update={"sparse_engine_sha256": "0" * 64})
    with pytest.raises(
        ArtifactError, match=r"about another sparse engine: recorded digest 0{64}.*run 'masksparse profile' again"
    ):
        judged(Gates(latency_ratio=1.2), profile=other)


@pytest.mark.parametrize(
    ("layers", "gates", "verdict"),
    [
        (masked(True, True, False, False), Gates(sparse_layers=2), "pass"),
        (masked(True, True, False, False), Gates(sparse_layers=3), "fail"),
        (masked(True, True, None, False), Gates(sparse_layers=3), "inconclusive"),
        (masked(True, None, None, None), Gates(sparse_layers=1), "pass"),
        (masked(True, True, False, False), Gates(sparse_layer_share=0.5), "pass"),
        (masked(True, True, False, False), Gates(sparse_layer_share=0.51), "fail"),
        (masked(True, True, False, None), Gates(sparse_layer_share=0.51), "inconclusive"),
        (masked(True, True, False, False), Gates(sparse_layers=2, sparse_layer_share=0.75), "fail"),
        (masked(False, False), Gates(sparse_layers=1), "fail"),
        ((), Gates(sparse_layer_share=0.5), "inconclusive"),
    ],
)
def test_sparse_layers(layers: tuple[LayerSurvival, ...], gates: Gates, verdict: str) -> None:
    (check,) = judged(gates, layers)
    assert check.verdict == verdict, check.detail


def test_sparse_layers_are_counted_and_the_runtime_is_quoted() -> None:
    (check,) = judged(Gates(sparse_layers=3, sparse_layer_share=0.5), masked(True, True, None, False))
    assert check.measured == 2
    assert "2 of 4 masked layers run a sparse tactic, of 1 the runtime does not tell" in check.detail
    assert "demanded: 3 layers and 50 % of them" in check.detail
    assert ENGINE.sparse_kernels in check.detail


@pytest.mark.parametrize(
    ("certified", "share", "verdict"),
    [((30, 100), 0.3, "pass"), ((29, 100), 0.3, "fail"), ((0, 100), 0.01, "fail"), (None, 0.3, "inconclusive")],
)
def test_certified_share(certified: tuple[int, int] | None, share: float, verdict: str) -> None:
    (check,) = judged(Gates(certified_share=share), certified=certified)
    assert check.verdict == verdict, check.detail
