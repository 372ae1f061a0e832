from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.progress import silent
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.profiling import compare
from masksparse_deploy.profiling.compare import profile_pair
from tests.models.make_onnx import residual_pair
from tests.profiling.machines import DEVICE, FakeBackend, FakeClock, LatencyModel, write_engine

IMAGES = np.zeros((10, 3, 4, 4), np.float32)
ENGINE = EngineOptions(batch=4, threads=3)


def profile(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    latency_s: LatencyModel,
    *,
    step_s: float = 0.0,
    images: npt.NDArray[np.float32] = IMAGES,
    has_sparse_kernels: bool = True,
    **options: Any,
) -> tuple[ProfileReport, FakeBackend]:
    clock = FakeClock(step_s)
    backend = FakeBackend(clock, latency_s)
    monkeypatch.setattr(compare, "get_backend", lambda name: backend)
    layer = EngineLayer(name="conv", onnx_nodes=("conv",), tactic="", is_sparse=has_sparse_kernels, reason="")
    dense, sparse = write_engine(folder, "dense"), write_engine(folder, "sparse", layers=(layer,))
    report = profile_pair(dense, sparse, images, ENGINE, ProfileOptions(**options), clock=clock)
    return report, backend


def noisy(ratio: float, *, control: float = 1.0, seed: int = 0, spread: float = 0.05) -> LatencyModel:
    """Dense engines of 2 ms, a sparse one `ratio` times as fast, log-normal noise."""
    generator = np.random.default_rng(seed)
    seconds = {"dense": 2e-3, "control": 2e-3 / control, "sparse": 2e-3 / ratio}
    return lambda role, now: seconds[role] * float(np.exp(spread * generator.standard_normal()))


@pytest.mark.parametrize("ratio", [0.8, 1.0, 1.5])
def test_a_known_ratio_is_recovered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float) -> None:
    report, backend = profile(tmp_path, monkeypatch, noisy(ratio))
    assert report.invalid_because == ()
    # a ratio of medians of three varies by 0.05 * 0.67 * sqrt(2) = 0.047, the median of 100 by 1.25 / 10 of it: 0.6 %
    assert report.speedup.ratio == pytest.approx(ratio, rel=0.03)
    assert report.speedup.interval.low < ratio < report.speedup.interval.high
    assert report.control.interval.low < 1 < report.control.interval.high
    assert report.speedup.interval.confidence == 0.95
    assert report.dense.median_ms == pytest.approx(2.0, rel=0.03)
    assert len(report.dense.samples_ms) == 300
    assert report.sparse_kernels == "kernels of sparse"
    assert report.conditions.batch == 4
    assert {session.batches[0] for session in backend.sessions.values()} == {(4, 3, 4, 4)}
    assert backend.threads == {3}


@pytest.mark.parametrize(("ratio", "count"), [(1.0, 0), (1.5, 1)])
def test_a_speedup_without_sparse_kernels_is_invalid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ratio: float, count: int
) -> None:
    report, _ = profile(tmp_path, monkeypatch, noisy(ratio), has_sparse_kernels=False)
    assert len(report.invalid_because) == count
    assert all("both engines do the same arithmetic" in reason for reason in report.invalid_because)


@pytest.mark.parametrize(
    "layers", [(), (EngineLayer(name="conv", onnx_nodes=(), tactic="b", is_sparse=False, reason=""),)], ids=len
)
def test_engines_of_unknown_or_other_kernels_may_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layers: tuple[EngineLayer, ...]
) -> None:
    clock = FakeClock()
    backend = FakeBackend(clock, noisy(1.5))
    monkeypatch.setattr(compare, "get_backend", lambda name: backend)
    dense = tuple(layer.model_copy(update={"tactic": "a"}) for layer in layers)
    paths = [write_engine(tmp_path, name, layers=of_name) for name, of_name in (("dense", dense), ("sparse", layers))]
    report = profile_pair(*paths, IMAGES, ENGINE, ProfileOptions(rounds=20), clock=clock)
    assert report.invalid_because == ()


def test_a_rewritten_engine_may_be_faster_without_sparse_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    backend = FakeBackend(clock, noisy(1.5))
    monkeypatch.setattr(compare, "get_backend", lambda name: backend)
    paths = [write_engine(tmp_path, name, own_operators=name == "sparse") for name in ("dense", "sparse")]
    report = profile_pair(*paths, IMAGES, ENGINE, ProfileOptions(rounds=100), clock=clock)
    assert report.invalid_because == ()
    assert report.speedup.ratio == pytest.approx(1.5, rel=0.03)


def test_the_interval_covers_the_truth_as_often_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    covered = 0
    for seed in range(60):
        report, _ = profile(
            tmp_path, monkeypatch, noisy(1.2, seed=seed), rounds=20, inferences_per_round=1, warmup=1, confidence=0.9, seed=seed
        )
        covered += report.speedup.interval.low <= 1.2 <= report.speedup.interval.high
    # 60 runs of at least 90 %: 54 expected, standard deviation 2.3; three deviations
    assert covered >= 47


def drifting(role: str, now: float) -> float:
    """All engines equal, more than twice as slow by the end of the run (900 inferences, about 3 s)."""
    return 2e-3 * (1 + 0.5 * now)


def test_drift_is_reported_and_does_not_spoil_the_ratio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(tmp_path, monkeypatch, drifting)
    assert any("first half" in reason for reason in report.invalid_because)
    assert report.speedup.ratio == pytest.approx(1.0, abs=0.01)


def one_after_the_other(
    timers: Mapping[str, Callable[[], float]], options: ProfileOptions, **_: object
) -> dict[str, npt.NDArray[np.float64]]:
    """The mistake that interleaving avoids: all runs of one engine, then all of the next."""
    shape = (options.rounds, options.inferences_per_round)
    return {name: np.array([timer() for _ in range(shape[0] * shape[1])]).reshape(shape) for name, timer in timers.items()}


def test_without_interleaving_drift_gives_a_wrong_ratio_that_the_control_shows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "sample_timers", one_after_the_other)
    report, _ = profile(tmp_path, monkeypatch, drifting)
    assert abs(report.speedup.ratio - 1) > 0.1
    assert any("dense engine against itself" in reason for reason in report.invalid_because)


def test_a_biased_second_handle_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(tmp_path, monkeypatch, noisy(1.0, control=1.1))
    assert [reason for reason in report.invalid_because if "against itself" in reason]


def test_a_coarse_clock_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(tmp_path, monkeypatch, noisy(1.3), step_s=1e-3)
    assert any("steps of 1 ms" in reason for reason in report.invalid_because)


def test_a_clock_coarser_than_an_inference_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(tmp_path, monkeypatch, lambda role, now: 1e-5, step_s=1e-3)
    assert any("steps of 1 ms" in reason for reason in report.invalid_because)


def test_noise_widens_the_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, _ = profile(tmp_path, monkeypatch, noisy(1.2, spread=0.01))
    loud, _ = profile(tmp_path, monkeypatch, noisy(1.2, spread=0.3))
    widths = [report.speedup.interval.high - report.speedup.interval.low for report in (quiet, loud)]
    assert widths[1] > 5 * widths[0]


def test_dependent_rounds_are_joined_into_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def gusts(role: str, now: float) -> float:
        # a load that comes and goes every 0.1 s (about five rounds) and slows the sparse engine alone
        return 2e-3 * (1.3 if role == "sparse" and int(now / 0.1) % 2 else 1.0)

    report, _ = profile(tmp_path, monkeypatch, gusts)
    assert int(report.conditions.details["rounds_per_block"]) > 1


def test_too_few_rounds_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(tmp_path, monkeypatch, noisy(1.2), rounds=10, confidence=0.999)
    assert any("at least 11" in reason for reason in report.invalid_because)
    # 1 - 2^(1 - 10): what ten values can reach
    assert report.speedup.interval.confidence == pytest.approx(1 - 2**-9)


def test_few_images_are_repeated_and_none_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    report, backend = profile(tmp_path, monkeypatch, noisy(1.0), images=IMAGES[:3], rounds=10)
    assert report.conditions.batch == 4
    assert backend.sessions["dense"].batches == [(4, 3, 4, 4)]
    with pytest.raises(UsageError, match="no images"):
        profile(tmp_path, monkeypatch, noisy(1.0), images=IMAGES[:0])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backend", "tensorrt"),
        ("precision", "fp16"),
        ("options", {"batch": 8, "threads": 1}),
        ("versions", {"onnxruntime": "1.30.0"}),
        ("device", DEVICE.model_copy(update={"name": "another CPU"})),
        ("exposed", ("relu",)),
    ],
)
def test_engines_that_differ_in_more_than_their_weights_are_refused(tmp_path: Path, field: str, value: Any) -> None:
    dense, sparse = write_engine(tmp_path, "dense"), write_engine(tmp_path, "sparse", **{field: value})
    with pytest.raises(ArtifactError, match=f"differ in {field}"):
        profile_pair(dense, sparse, IMAGES, ENGINE, ProfileOptions())


def test_engines_of_different_fixed_batches_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    monkeypatch.setattr(compare, "get_backend", lambda name: FakeBackend(clock, noisy(1.0), sparse_batch=8))
    paths = [write_engine(tmp_path, name) for name in ("dense", "sparse")]
    message = r"differ in input shape: dense has \(None, 3, 4, 4\), sparse has \(8, 3, 4, 4\)"
    with pytest.raises(ArtifactError, match=message):
        profile_pair(*paths, IMAGES, ENGINE, ProfileOptions(rounds=10), clock=clock)


def test_a_clock_that_stops_during_the_run_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It moves while its steps are measured, and stands still from then on."""
    clock = FakeClock()
    ticks = iter(range(100))
    monkeypatch.setattr(compare, "get_backend", lambda name: FakeBackend(clock, noisy(1.0)))
    paths = [write_engine(tmp_path, name) for name in ("dense", "sparse")]
    report = profile_pair(*paths, IMAGES, ENGINE, ProfileOptions(rounds=10), clock=lambda: 1e-6 * next(ticks, 100))
    assert any("the clock moves in steps" in reason for reason in report.invalid_because)


def test_an_engine_built_elsewhere_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    backend = FakeBackend(clock, noisy(1.0))
    monkeypatch.setattr(compare, "get_backend", lambda name: backend)
    other = DEVICE.model_copy(update={"name": "the build machine"})
    paths = [write_engine(tmp_path, name, device=other) for name in ("dense", "sparse")]
    report = profile_pair(*paths, IMAGES, ENGINE, ProfileOptions(rounds=10), clock=clock)
    assert report.device == DEVICE.name
    assert report.conditions.details["built_on"] == "the build machine"


def test_real_engines(tmp_path: Path) -> None:
    backend, options = OnnxRuntimeBackend(), EngineOptions(batch=2, threads=1)
    for name, model in zip(("dense", "sparse"), residual_pair(), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
        backend.build(tmp_path / f"{name}.onnx", tmp_path, options, name=name)
    paths = [tmp_path / f"{name}.engine.json" for name in ("dense", "sparse")]
    images = np.zeros((2, 3, 8, 8), np.float32)
    report = profile_pair(*paths, images, options, ProfileOptions(rounds=10), progress=silent)
    assert report.sparse_engine_sha256 == EngineArtifact.read(paths[1]).digest
    assert "no 2:4 kernels" in report.sparse_kernels
    assert min(report.dense.samples_ms) > 0
    assert ProfileReport.model_validate_json(report.model_dump_json()) == report
