"""Speedup against batch and image size: the same two files, timed at several points."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.sweeping import SweepPoint, SweepReport
from masksparse_deploy.core.artifacts.timing import EngineRole, ProfileReport
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import canonical_json
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.batches import check_images
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.profiling.builds import BUILDS, provide_builds
from masksparse_deploy.profiling.compare import profile_builds
from masksparse_deploy.profiling.twins import has_sparse_tactics

__all__ = ["Point", "sweep", "sweep_points"]

Images = npt.NDArray[np.float32]


@dataclass(frozen=True, order=True)
class Point:
    """Where to time: images of a size, so many of them in a batch."""

    height: int
    width: int
    batch: int


def sweep_points(onnx_path: Path, batches: Sequence[int], sizes: Sequence[tuple[int, int]]) -> tuple[Point, ...]:
    """Every batch with every size, ascending; without sizes that of the file.

    Raises:
        UsageError: the file is missing or damaged, it fixes a batch or size and another is asked for, or nothing is asked for.
    """
    source = read_source(onnx_path)
    batch, _, height, width = source.input_shape
    told = f"input {source.input_name} of {onnx_path} has shape {source.input_shape}"
    if not batches:
        raise UsageError("there is no batch to sweep over; give some, as --batches 1,8,32")
    if batch is not None and set(batches) != {batch}:
        raise UsageError(f"{told}, which fixes the batch: export the model with an open one, or sweep over {batch} alone")
    if not sizes:
        if height is None or width is None:
            raise UsageError(f"{told}, which leaves the size open: say which to time, as --images 160x160,224x224")
        sizes = ((height, width),)
    for size in sizes:
        if any(fixed not in (None, wanted) for fixed, wanted in zip((height, width), size, strict=True)):
            raise UsageError(f"{told}, which fixes the size: export the model with an open one, or leave out {_text(size)}")
    return tuple(sorted({Point(*size, count) for size in sizes for count in batches}))


def sweep(
    dense_onnx: Path,
    sparse_onnx: Path,
    points: Sequence[Point],
    images: Images,
    backend: Backend,
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    folder: Path,
    *,
    known: SweepReport | None = None,
    on_report: Callable[[SweepReport], None] = lambda report: None,
    progress: Progress = silent,
) -> SweepReport:
    """Build and time both files at every point.

    An engine is tuned for one batch and size where the backend has sparse tactics, and is built anew for every point there,
    several times (`profile_builds`); elsewhere one build takes them all.

    Args:
        dense_onnx: the dense twin.
        sparse_onnx: the sparse or the rewritten file.
        points: where to time.
        images: float32 (count, channels, height, width); cut, or repeated, to each point's batch and size.
        backend: builds and runs them.
        engine_options: for everything but batch and size.
        profile_options: as for one comparison; each point is one.
        folder: where engines are built.
        known: the report of an earlier sweep; what it has of the same files, machine and options is not timed again.
        on_report: called with all that is known after every point, so that an interrupted sweep goes on from there.
        progress: told how far each point is.

    Raises:
        UsageError: there are no images, or not of the channels and the size that the file fixes.
        ArtifactError: a file is damaged or refused.
        MachineError: the backend does not work on this machine.
    """
    if len(images) == 0:
        raise UsageError("there are no images to time the engines with; the test data is empty")
    # before anything is built or cut: only a file that leaves the size open takes images of other sizes
    check_images(images, read_source(dense_onnx).input_shape)
    blank = _blank(dense_onnx, sparse_onnx, backend, engine_options, profile_options)
    is_same = known is not None and known.model_copy(update={"points": (), "clock": ""}) == blank
    report = known if known is not None and is_same else blank
    shared: tuple[Path, Path] | None = None
    for point in points:
        if any(_where(found) == point for found in report.points):
            continue
        progress(f"sweep: batch {point.batch}, {_text((point.height, point.width))}", 0, 1)
        paths = shared or _engines(dense_onnx, sparse_onnx, point, backend, engine_options, folder, progress)
        if not has_sparse_tactics(EngineArtifact.read(paths[0])):
            shared = paths
        count = profile_options.builds
        builds = provide_builds(*paths, dense_onnx, sparse_onnx, paths[0].parent / BUILDS, count=count, progress=progress)
        own = engine_options.model_copy(update={"batch": point.batch})
        found = profile_builds(builds, _fitted(images, point), own, profile_options, progress=progress)
        rows = sorted((*report.points, _row(point, found)), key=_where)
        report = report.model_copy(update={"points": tuple(rows), "clock": found.clock})
        on_report(report)
    return report


def _blank(
    dense_onnx: Path, sparse_onnx: Path, backend: Backend, engine_options: EngineOptions, profile_options: ProfileOptions
) -> SweepReport:
    """A report without points: what must agree for points to be kept."""
    status = backend.status()
    varying = {"backend", "batch", "smallest_batch", "largest_batch", "smallest_image", "tuned_image", "largest_image"}
    options = {**engine_options.model_dump(mode="json", exclude=varying), **profile_options.model_dump(mode="json")}
    return SweepReport(
        dense_onnx_sha256=read_source(dense_onnx).graph.sha256,
        sparse_onnx_sha256=read_source(sparse_onnx).graph.sha256,
        backend=backend.name,
        device=status.device.name if status.device is not None else "",
        architecture=status.device.architecture if status.device is not None else "",
        versions=status.versions,
        options={name: canonical_json(value).decode() for name, value in options.items()},
        clock="",
        points=(),
    )


def _engines(
    dense_onnx: Path,
    sparse_onnx: Path,
    point: Point,
    backend: Backend,
    options: EngineOptions,
    folder: Path,
    progress: Progress,
) -> tuple[Path, Path]:
    """The engine.json of both files, built for a point."""
    roles: tuple[tuple[EngineRole, Path], ...] = (("dense", dense_onnx), ("sparse", sparse_onnx))
    is_open = None in read_source(dense_onnx).input_shape[2:]
    own = {
        **options.model_dump(),
        "batch": point.batch,
        "smallest_batch": 1,
        "largest_batch": None,
        "smallest_image": None,
        "tuned_image": _text((point.height, point.width)) if is_open else None,
        "largest_image": None,
        # times that are kept would make the first builds of both files alike
        "timing_cache": NO_TIMING_CACHE,
    }
    where = folder / f"batch-{point.batch}-{_text((point.height, point.width))}"
    for role, path in roles:
        backend.build(path, where, EngineOptions.model_validate(own), name=role, progress=progress)
    return metadata_path(where, "dense"), metadata_path(where, "sparse")


def _fitted(images: Images, point: Point) -> Images:
    """The images cut to a point's size, or continued from their first row and column where they are smaller."""
    _, _, height, width = images.shape
    rows, columns = np.arange(point.height) % height, np.arange(point.width) % width
    chosen = images[np.arange(point.batch) % len(images)]
    return np.ascontiguousarray(chosen[:, :, rows][:, :, :, columns])


def _row(point: Point, report: ProfileReport) -> SweepPoint:
    return SweepPoint(
        batch=report.conditions.batch,
        height=point.height,
        width=point.width,
        dense_ms=report.dense.median_ms,
        sparse_ms=report.sparse.median_ms,
        speedup=report.speedup,
        control=report.control,
        ratios=report.ratios,
        end_to_end=None if report.end_to_end is None else report.end_to_end.speedup,
        sparse_kernels=report.sparse_kernels,
        invalid_because=report.invalid_because,
    )


def _where(row: SweepPoint) -> Point:
    return Point(row.height, row.width, row.batch)


def _text(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
