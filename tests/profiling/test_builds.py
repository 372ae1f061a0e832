"""Three engines, several builds of each: on a stand-in whose builds differ by chance."""

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.artifacts.timing import EngineRatio, EngineRole, ProfileReport
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.profiling import builds as builds_module
from masksparse_deploy.profiling import compare
from masksparse_deploy.profiling.builds import provide_builds
from masksparse_deploy.profiling.compare import profile_builds
from masksparse_deploy.profiling.gpu_state import GpuWatch
from tests.models.make_onnx import residual_pair
from tests.profiling.building import TRANSFER_S, BuildingBackend
from tests.profiling.fake_nvml import FakeNvml
from tests.profiling.machines import FakeClock
from tests.report.engine_artifacts import make_profile

IMAGES = np.zeros((4, 3, 8, 8), np.float32)
ENGINE = EngineOptions(batch=4)
FASTER_BY_TACTICS: dict[EngineRole, float] = {"dense": 2e-3, "forbidden": 2e-3, "sparse": 1e-3}
OTHERS_PID = 99


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "dense.onnx", tmp_path / "sparse.onnx")
    for path, model in zip(paths, residual_pair(), strict=True):
        onnx.save(model, path)
    return paths


@contextmanager
def no_watch() -> Iterator[GpuWatch]:
    raise MachineError("NVML does not work here")
    yield


def provide(files: tuple[Path, Path], backend: BuildingBackend, monkeypatch: pytest.MonkeyPatch, count: int = 3) -> Any:
    """The two deployed engines where they are not there yet, and the further builds."""
    for module in (compare, builds_module):
        monkeypatch.setattr(module, "get_backend", lambda name: backend)
    folder = files[0].parent
    for path in files:
        if not metadata_path(folder, path.stem).is_file():
            backend.build(path, folder, ENGINE, name=path.stem)
    dense, sparse = (metadata_path(folder, path.stem) for path in files)
    return provide_builds(dense, sparse, *files, folder / "builds", count=count)


def profile(
    files: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    seconds: dict[EngineRole, float],
    *,
    build_spread: float,
    watch: Any = no_watch,
    seed: int = 0,
    **options: Any,
) -> tuple[ProfileReport, BuildingBackend]:
    clock = FakeClock()
    backend = BuildingBackend(clock, seconds, build_spread=build_spread, seed=seed)
    found = provide(files, backend, monkeypatch, options.get("builds", 3))
    given = ProfileOptions(**{"rounds": 20, "warmup": 1, **options})
    return profile_builds(found, IMAGES, ENGINE, given, clock=clock, watch=watch), backend


def by_name(report: ProfileReport) -> dict[str, EngineRatio]:
    return {f"{ratio.slower}/{ratio.faster}": ratio for ratio in report.ratios}


def test_builds_are_made_once_and_without_a_timing_cache(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), FASTER_BY_TACTICS, build_spread=0.0)
    found = provide(files, backend, monkeypatch)
    assert {role: len(paths) for role, paths in found.items()} == {"dense": 3, "forbidden": 3, "sparse": 3}
    further = backend.built[2:]
    assert [name for name, _ in further] == [
        *("dense-2", "dense-3"),
        *("forbidden-1", "forbidden-2", "forbidden-3"),
        *("sparse-2", "sparse-3"),
    ]
    assert {(name.startswith("forbidden"), options.sparse_tactics) for name, options in further} == {
        (True, False),
        (False, True),
    }
    assert {(options.timing_cache, options.batch) for _, options in further} == {(NO_TIMING_CACHE, 4)}

    assert provide(files, backend, monkeypatch) == found
    assert len(backend.built) == 9
    # a damaged plan, and a build that is another one than its name says, are made again
    (files[0].parent / "builds" / "sparse-2.plan").write_bytes(b"other")
    folder = files[0].parent / "builds"
    metadata_path(folder, "sparse-3").replace(metadata_path(folder, "forbidden-1"))
    provide(files, backend, monkeypatch)
    assert [name for name, _ in backend.built[9:]] == ["forbidden-1", "sparse-2", "sparse-3"]


def test_what_was_built_before_the_work_was_ended_is_kept(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), FASTER_BY_TACTICS, build_spread=0.0)
    provide(files, backend, monkeypatch, count=1)
    dense, sparse = (metadata_path(files[0].parent, path.stem) for path in files)
    calls: list[int] = []

    def end_at_the_third() -> None:
        calls.append(len(backend.built))
        if len(calls) == 3:
            raise TimeoutError

    before = len(backend.built)
    with pytest.raises(TimeoutError):
        provide_builds(dense, sparse, *files, files[0].parent / "builds", count=3, before_build=end_at_the_third)
    # one call for each build, before it
    assert calls == [before, before + 1, before + 2] and len(backend.built) == before + 2
    assert {len(paths) for paths in provide(files, backend, monkeypatch).values()} == {3}
    assert [name for name, _ in backend.built[before:]] == [
        "dense-2",
        "dense-3",
        *("forbidden-2", "forbidden-3", "sparse-2", "sparse-3"),
    ]


def test_a_build_from_another_file_is_refused(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), FASTER_BY_TACTICS, build_spread=0.0)
    provide(files, backend, monkeypatch)
    dense, sparse = (metadata_path(files[0].parent, path.stem) for path in files)
    with pytest.raises(ArtifactError, match=r"the dense engine was built from the ONNX file .*sparse\.onnx is"):
        provide_builds(dense, sparse, files[1], files[1], files[0].parent, count=2)


def test_a_build_that_came_out_otherwise_is_refused(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), FASTER_BY_TACTICS, build_spread=0.0)
    provide(files, backend, monkeypatch, count=1)
    monkeypatch.setattr("tests.profiling.building.GPU", backend.status().device.model_copy(update={"name": "another GPU"}))  # type: ignore[union-attr]
    with pytest.raises(ArtifactError, match=r"differs from the deployed engine in device: .*another GPU"):
        provide(files, backend, monkeypatch)


def test_without_sparse_tactics_the_two_engines_are_all(files: tuple[Path, Path]) -> None:
    folder = files[0].parent
    for path in files:
        OnnxRuntimeBackend().build(path, folder, ENGINE, name=path.stem)
    dense, sparse = (metadata_path(folder, path.stem) for path in files)
    found = provide_builds(dense, sparse, *files, folder / "builds", count=3)
    assert found == {"dense": (dense,), "sparse": (sparse,)}
    assert not (folder / "builds").exists()


def test_what_users_get_and_what_sparse_tactics_bring(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report, backend = profile(files, monkeypatch, FASTER_BY_TACTICS, build_spread=0.01)
    ratios = by_name(report)
    assert [ratio.conclusion for ratio in report.ratios] == ["faster", "faster", "not told apart"]
    # builds 1 % apart: medians of nine quotients of three builds each lie within four times 1 % of the truth
    assert ratios["dense/sparse"].ratio == pytest.approx(2.0, rel=0.04)
    assert ratios["forbidden/sparse"].ratio == pytest.approx(2.0, rel=0.04)
    assert len(ratios["dense/sparse"].of_builds) == 9
    assert report.speedup.ratio == ratios["dense/sparse"].ratio
    assert report.speedup.interval.confidence == pytest.approx(0.9)  # what three builds of each can reach
    assert [(build.engine, build.number) for build in report.builds[:4]] == [
        *(("dense", 1), ("dense", 2), ("dense", 3), ("forbidden", 1)),
    ]
    assert (report.clock, report.architecture) == ("CUDA events", "sm_90")
    assert report.invalid_because == ()
    assert "NVML does not work here" in report.conditions.details["gpu_state"]
    assert len(report.dense.samples_ms) == 3 * 20 * 3
    assert report.forbidden is not None
    assert {session.cuda_graph for session in backend.sessions.values()} == {False}


def test_end_to_end_times_hold_the_transfers(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(files, monkeypatch, FASTER_BY_TACTICS, build_spread=0.0, cuda_graph=True)
    assert report.clock == "CUDA events, CUDA graphs"
    found = report.end_to_end
    assert found is not None
    assert found.dense.median_ms == pytest.approx(2.0 + 1000 * TRANSFER_S, rel=0.01)
    assert found.speedup.ratio == pytest.approx(3 / 2, rel=0.01)


def test_a_forbidden_engine_that_is_the_fast_one_is_told(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(files, monkeypatch, {"dense": 2e-3, "forbidden": 1e-3, "sparse": 1.5e-3}, build_spread=0.01)
    ratios = by_name(report)
    assert ratios["forbidden/sparse"].conclusion == "slower"
    assert ratios["dense/forbidden"].ratio == pytest.approx(2.0, rel=0.04)
    assert ratios["dense/sparse"].conclusion == "faster"


def test_build_noise_larger_than_the_effect_tells_nothing(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Sparse tactics bring 2 %, builds differ by 10 %: one build of each gives a wrong answer with a narrow interval."""
    seconds: dict[EngineRole, float] = {"dense": 1.02e-3, "forbidden": 1.02e-3, "sparse": 1e-3}
    report, _ = profile(files, monkeypatch, seconds, build_spread=0.1, seed=3)
    assert {ratio.conclusion for ratio in report.ratios} == {"not told apart"}
    assert report.speedup.interval.low < 1.02 < report.speedup.interval.high

    for path in (files[0].parent / "builds").glob("*"):
        path.unlink()
    alone, _ = profile(files, monkeypatch, seconds, build_spread=0.1, seed=3, builds=1)
    assert not alone.speedup.interval.low < 1.02 < alone.speedup.interval.high
    assert "not for other builds" in alone.conditions.details["builds"]


def test_layers_of_the_first_builds(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    report, _ = profile(files, monkeypatch, FASTER_BY_TACTICS, build_spread=0.0)
    assert [(row.engine, row.name, row.share) for row in report.layers] == [
        (role, name, share) for role in ("dense", "forbidden", "sparse") for name, share in (("conv", 0.75), ("pool", 0.25))
    ]
    conv, pool = report.layers[2:4]
    assert (conv.onnx_nodes, conv.tactic, conv.median_ms) == (("node",), "tactic of forbidden-1", 1.5)
    assert (pool.onnx_nodes, pool.tactic) == ((), "")  # timed, and not among the engine's layers


@pytest.mark.parametrize(("fault", "words"), [("limits", "throttled"), ("pids", "other compute processes")])
def test_a_gpu_that_throttles_or_is_shared_makes_the_run_invalid(
    files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, fault: str, words: str
) -> None:
    nvml = FakeNvml()
    nvml.pids = [1]

    @contextmanager
    def watch() -> Iterator[GpuWatch]:
        yield GpuWatch(nvml, "gpu", own_pid=1)

    watching: AbstractContextManager[GpuWatch] = watch()
    report, _ = profile(files, monkeypatch, FASTER_BY_TACTICS, build_spread=0.0, watch=lambda: watching)
    assert report.invalid_because == ()
    assert report.gpu is not None
    assert [reading.when for reading in report.gpu.readings] == ["start", *["during"] * 10, "end"]

    report.write(files[0].parent / "profile.json")
    assert ProfileReport.read(files[0].parent / "profile.json") == report

    setattr(nvml, fault, {"limits": 0x4, "pids": [1, OTHERS_PID]}[fault])
    report, _ = profile(files, monkeypatch, FASTER_BY_TACTICS, build_spread=0.0, watch=watch)
    assert len(report.invalid_because) == 1
    assert words in report.invalid_because[0]


def test_an_engine_called_forbidden_must_forbid(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    backend = BuildingBackend(FakeClock(), FASTER_BY_TACTICS, build_spread=0.0)
    found = provide(files, backend, monkeypatch)
    with pytest.raises(ArtifactError, match=r"differ in options: .*'sparse_tactics': False.*forbidden has .*True"):
        profile_builds({**found, "forbidden": found["sparse"]}, IMAGES, ENGINE, ProfileOptions(rounds=10))


def test_a_report_of_two_engines_that_was_written_earlier_is_still_read(tmp_path: Path) -> None:
    content = json.loads(make_profile().to_bytes())
    for name in ("architecture", "clock", "forbidden", "ratios", "builds", "end_to_end", "gpu", "layers"):
        del content[name]
    (tmp_path / "profile.json").write_text(json.dumps(content), encoding="utf-8")
    assert ProfileReport.read(tmp_path / "profile.json") == make_profile()
