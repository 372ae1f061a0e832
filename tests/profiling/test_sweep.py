"""Sweeps over batches and sizes: real ones with ONNX Runtime, and one on a stand-in that builds for every point."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from masksparse_deploy.core.artifacts.sweeping import SweepReport
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.profiling import builds as builds_module
from masksparse_deploy.profiling import compare
from masksparse_deploy.profiling.sweep import Point, _fitted, sweep, sweep_points
from tests.models.make_onnx import residual_pair
from tests.profiling.building import BuildingBackend
from tests.profiling.machines import FakeClock

IMAGES = np.random.default_rng(0).standard_normal((6, 3, 8, 8), dtype=np.float32)
QUICK = ProfileOptions(rounds=10, inferences_per_round=1, warmup=1)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    paths = (tmp_path / "dense.onnx", tmp_path / "sparse.onnx")
    for path, model in zip(paths, residual_pair(), strict=True):
        onnx.save(model, path)
    return paths


def open_size(path: Path) -> Path:
    """The same file with an open height and width."""
    model = onnx.load(path)
    for axis, name in ((2, "height"), (3, "width")):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = name
    del model.graph.value_info[:]
    onnx.save(model, path)
    return path


def run(files: tuple[Path, Path], points: Any, **changes: Any) -> SweepReport:
    options = {"backend": OnnxRuntimeBackend(), "engine_options": EngineOptions(threads=1), "profile_options": QUICK, **changes}
    return sweep(*files, points, IMAGES, folder=files[0].parent / "sweep", **options)


def test_batches_on_a_real_runtime_with_one_build_for_all(files: tuple[Path, Path]) -> None:
    seen: list[int] = []
    report = run(files, sweep_points(files[0], [4, 1], []), on_report=lambda found: seen.append(len(found.points)))
    assert [(point.batch, point.height, point.width) for point in report.points] == [(1, 8, 8), (4, 8, 8)]
    assert seen == [1, 2]
    assert report.clock == "wall clock"
    assert all(point.dense_ms > 0 and not point.ratios and point.end_to_end is None for point in report.points)
    assert len(list((files[0].parent / "sweep").iterdir())) == 1


def test_sizes_on_a_real_runtime(files: tuple[Path, Path]) -> None:
    for path in files:
        open_size(path)
    report = run(files, sweep_points(files[0], [2], [(16, 8), (8, 8)]))
    assert [(point.height, point.width) for point in report.points] == [(8, 8), (16, 8)]


def test_what_is_known_is_not_timed_again(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    points = sweep_points(files[0], [1, 2], [])
    first = run(files, points[:1])
    report = run(files, points, known=first)
    assert report.points[0] == first.points[0]
    assert run(files, points, known=report) == report
    # with other options, nothing is known
    other = run(files, points[:1], known=report, profile_options=QUICK.model_copy(update={"seed": 1}))
    assert len(other.points) == 1


def test_engines_that_are_tuned_are_built_for_every_point(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = FakeClock()
    backend = BuildingBackend(clock, {"dense": 2e-3, "forbidden": 2e-3, "sparse": 1e-3}, build_spread=0.0)
    for module in (compare, builds_module):
        monkeypatch.setattr(module, "get_backend", lambda name: backend)
    options = {"backend": backend, "profile_options": QUICK.model_copy(update={"builds": 2})}
    report = run(files, sweep_points(files[0], [1, 4], []), **options)
    assert [options.batch for _, options in backend.built] == [1] * 6 + [4] * 6
    assert {options.timing_cache for _, options in backend.built} == {NO_TIMING_CACHE}
    assert [[ratio.conclusion for ratio in point.ratios[:2]] for point in report.points] == [["faster", "faster"]] * 2
    assert (report.clock, report.architecture) == ("CUDA events", "sm_90")
    assert all(point.end_to_end is not None for point in report.points)


def test_images_are_cut_or_continued() -> None:
    images = np.arange(2 * 1 * 2 * 3, dtype=np.float32).reshape(2, 1, 2, 3)
    fitted = _fitted(images, Point(3, 2, 3))
    assert fitted.shape == (3, 1, 3, 2)
    np.testing.assert_array_equal(fitted[0, 0], [[0, 1], [3, 4], [0, 1]])
    np.testing.assert_array_equal(fitted[2], fitted[0])


@pytest.mark.parametrize(
    ("batches", "sizes", "opened", "words"),
    [
        ([], [], False, "no batch to sweep over; give some, as --batches 1,8,32"),
        ([1], [(9, 8)], False, r"shape (None, 3, 8, 8), which fixes the size: .* leave out 9x8"),
        ([1], [], True, "leaves the size open: say which to time, as --images 160x160,224x224"),
    ],
)
def test_points_that_a_file_does_not_take(
    files: tuple[Path, Path], batches: list[int], sizes: list[tuple[int, int]], opened: bool, words: str
) -> None:
    path = open_size(files[0]) if opened else files[0]
    with pytest.raises(UsageError, match=re.escape(words).replace(r"\.\*", ".*")):
        sweep_points(path, batches, sizes)


def test_a_fixed_batch_and_no_images(files: tuple[Path, Path]) -> None:
    model = onnx.load(files[0])
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, files[0])
    assert sweep_points(files[0], [4], []) == (Point(8, 8, 4),)
    with pytest.raises(UsageError, match="fixes the batch: export the model with an open one, or sweep over 4 alone"):
        sweep_points(files[0], [4, 8], [])
    with pytest.raises(UsageError, match="no images"):
        sweep(*files, (), IMAGES[:0], OnnxRuntimeBackend(), EngineOptions(), QUICK, files[0].parent)


@pytest.mark.parametrize("shape", [(2, 1, 8, 8), (2, 3, 9, 9)])
def test_images_that_the_file_does_not_take_are_refused_before_anything_is_built(
    files: tuple[Path, Path], shape: tuple[int, ...]
) -> None:
    images = np.zeros(shape, np.float32)
    folder = files[0].parent / "sweep"
    with pytest.raises(
        UsageError, match=re.escape(f"images of shape {shape} do not fit the engine: it takes (count, 3, 8, 8)")
    ):
        sweep(*files, (Point(8, 8, 1),), images, OnnxRuntimeBackend(), EngineOptions(), QUICK, folder)
    assert not folder.exists()
