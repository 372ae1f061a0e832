"""New weights in an engine that was built before: compared, re-masked, put in, and the outputs checked."""

import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.refit import RefitReport
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.core.files import make_folder, output_error, sha256_bytes, write_atomic
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.engine.plans import metadata_path, read_plan
from masksparse_deploy.engine.protocol import Backend, Images, Refits
from masksparse_deploy.engine.refit.check import relative_difference, rounding_tolerance
from masksparse_deploy.engine.refit.graphs import changed_constants, require_same_graph
from masksparse_deploy.engine.refit.remask import remask
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, read_graph

__all__ = ["refit"]

Outputs = npt.NDArray[Any]

_IMAGE_COUNT = 16
_OPEN_LENGTH = 64  # pixels, where neither file nor options tell a size
_STEPS = 4


def refit(
    engine_path: Path,
    source_path: Path,
    new_path: Path,
    out: Path,
    *,
    name: str,
    backend: Backend | None = None,
    progress: Progress = silent,
) -> RefitReport:
    """Put the weights of `new_path` under the old masks into an engine; writes `name.onnx`, plan, metadata and report.

    Args:
        engine_path: metadata of the engine, which stays as it is.
        source_path: the ONNX file that it was built from; its zeros are the masks.
        new_path: the same network with other weights.
        out: folder for the results, which appear only if the outputs are right.
        name: stem of the files.
        backend: runs the engine; that of its metadata by default.
        progress: told how far the work is.

    Raises:
        UsageError: a missing file, another network, an engine not built for new weights, or the engine itself as output.
        ArtifactError: the source is not the engine's, a file is damaged, or the outputs are not those of the new file.
        MachineError: the backend does not work here.
    """
    started = time.monotonic()
    backend = backend or get_backend(EngineArtifact.read(engine_path).backend)
    if not isinstance(backend, Refits):
        raise UsageError(f"the backend {backend.name} takes no new weights; build a new engine")
    status = backend.status()
    if not status.available:
        raise MachineError(f"the backend {backend.name} does not work here: {status.reason}")
    old_artifact, _ = read_plan(engine_path, backend=backend.name)
    if metadata_path(out, name).resolve() == engine_path.resolve():
        raise UsageError(f"the new engine would replace {engine_path} before it is checked; choose another --name or --out")
    progress(f"refit {name}", 0, _STEPS)
    old, new = read_graph(source_path), read_graph(new_path)
    if old.sha256 != old_artifact.source_sha256:
        raise ArtifactError(
            f"{engine_path} was built from a file of digest {old_artifact.source_sha256}, and {source_path} has "
            f"{old.sha256}: give the file that it was built from"
        )
    require_same_graph(old, new, old_name=str(source_path), new_name=str(new_path))
    content, layers = remask(old, new_path)
    remasked = parse_graph(content, name=str(new_path))
    changed = changed_constants(old, remasked)
    progress(f"refit {name}", 1, _STEPS)
    make_folder(out)
    with TemporaryDirectory(dir=out, prefix=f".{name}.refit.") as temporary:
        folder = Path(temporary)
        write_atomic(folder / f"{name}.onnx", content)
        new_onnx = folder / f"{name}.onnx"
        artifact = backend.refit(engine_path, new_onnx, folder, name=name, changed=changed, progress=progress)
        progress(f"refit {name}", 2, _STEPS)
        images = _images(remasked, old_artifact)
        with backend.open(metadata_path(folder, name)) as session:
            outputs = session.run(images)
        reference = OnnxRuntimeBackend()
        expected, stale = (_reference(reference, path, folder, images) for path in (new_onnx, source_path))
        progress(f"refit {name}", 3, _STEPS)
        error, change = (relative_difference(found, expected) for found in (outputs, stale))
        tolerance = rounding_tolerance(remasked, artifact.layers, tf32=artifact.options.get("tf32") is True)
        if error > tolerance:
            raise ArtifactError(
                f"the engine with the new weights does not compute what {new_path} says: its outputs are off by {error:.2g} of "
                f"their size, and rounding explains {tolerance:.2g}; build a new engine. Nothing was written"
            )
        report = RefitReport(
            backend=backend.name,
            rebuilt=backend.refit_rebuilds,
            engine=metadata_path(out, name).name,
            onnx=f"{name}.onnx",
            old_source_sha256=old.sha256,
            old_plan_sha256=old_artifact.plan_sha256,
            new_source_sha256=new.sha256,
            remasked_sha256=sha256_bytes(content),
            plan_sha256=artifact.plan_sha256,
            layers=layers,
            changed_tensors=changed,
            reference=" ".join(("ONNX Runtime", *reference.status().versions.values(), "on the CPU")),
            image_count=len(images),
            relative_error=error,
            relative_change=change,
            tolerance=tolerance,
            seconds=time.monotonic() - started,
            findings=_findings(change, tolerance),
        )
        report.write(folder / f"{name}.refit.json")
        _move(folder, out, last=metadata_path(out, name).name)
    progress(f"refit {name}", _STEPS, _STEPS)
    return report


def _images(graph: Graph, artifact: EngineArtifact) -> Images:
    """Random images, of the size that the engine is tuned for where the file leaves it open."""
    ((_, channels, *size),) = graph.inputs.values()
    tuned = str(artifact.options.get("tuned_image", "")).split("x")
    lengths = [int(part) for part in tuned] if len(tuned) == len(size) else [_OPEN_LENGTH] * len(size)
    shape = (_IMAGE_COUNT, channels or 1, *(fixed or length for fixed, length in zip(size, lengths, strict=True)))
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _reference(reference: OnnxRuntimeBackend, path: Path, folder: Path, images: Images) -> Mapping[str, Outputs]:
    """What ONNX Runtime computes from a file."""
    with TemporaryDirectory(dir=folder) as temporary:
        place = Path(temporary)
        reference.build(path, place, EngineOptions(batch=len(images)), name="reference")
        with reference.open(metadata_path(place, "reference")) as session:
            return session.run(images)


def _findings(change: float, tolerance: float) -> tuple[str, ...]:
    if change > tolerance:
        return ()
    return (
        f"the new weights move the outputs by {change:.2g} of their size, not more than the tolerance of {tolerance:.2g}: "
        "the check cannot tell them from the old ones",
    )


def _move(folder: Path, out: Path, *, last: str) -> None:
    """Bring the results to `out`, the metadata at the end: without it the rest is not an engine."""
    paths = sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.name == last)
    for path in paths:
        try:
            path.replace(out / path.name)
        except OSError as error:
            raise output_error(out / path.name, error) from error
