"""Several builds of each engine: those that are there and fit are kept, the others are made."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import EngineRole
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MasksparseError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.plans import built_options, metadata_path, read_plan
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.profiling.twins import SPARSE_TACTICS, has_sparse_tactics

__all__ = ["BUILDS", "provide_builds"]

# The folder of further builds, beside those that are deployed.
BUILDS = "builds"

_ROLES: tuple[EngineRole, ...] = ("dense", "forbidden", "sparse")


def provide_builds(
    dense: Path,
    sparse: Path,
    dense_onnx: Path,
    sparse_onnx: Path,
    folder: Path,
    *,
    count: int,
    before_build: Callable[[], None] = lambda: None,
    progress: Progress = silent,
) -> dict[EngineRole, Sequence[Path]]:
    """The engine.json of `count` builds of each engine, with the options of those given, which are the first ones.

    Where the backend has no sparse tactics, builds do not differ, and the two given engines are all.

    Further builds use no timing cache: what one build measured would decide the next one, and they would vary less than
    builds do.

    Args:
        dense: the dense twin's engine.json, as deployed.
        sparse: the sparse engine's.
        dense_onnx: the file that the first was built from.
        sparse_onnx: likewise; the engine "forbidden" is built from it, too.
        folder: where further builds are, and are written to.
        count: builds of each engine.
        before_build: called before each further build; what it raises ends the work, and finished builds are kept.
        progress: told how far each build is.

    Raises:
        UsageError: a file is missing.
        ArtifactError: a given engine was not built from the ONNX file given, or not on this device with these versions.
        MachineError: the backend does not work on this machine.
    """
    deployed: dict[EngineRole, Path] = {"dense": dense, "sparse": sparse}
    engines = {role: EngineArtifact.read(path) for role, path in deployed.items()}
    if not has_sparse_tactics(engines["sparse"]):
        return {role: (path,) for role, path in deployed.items()}
    sources: dict[EngineRole, Path] = {"dense": dense_onnx, "sparse": sparse_onnx, "forbidden": sparse_onnx}
    for role, engine in engines.items():
        _check_source(role, engine, sources[role])
    backend = get_backend(engines["sparse"].backend)
    found: dict[EngineRole, Sequence[Path]] = {}
    for role in _ROLES:
        like = engines.get(role, engines["sparse"])
        if role == "forbidden":
            like = like.model_copy(update={"options": {**like.options, SPARSE_TACTICS: False}})
        paths = [deployed[role]] if role in deployed else []
        for number in range(len(paths) + 1, count + 1):
            name = f"{role}-{number}"
            path = metadata_path(folder, name)
            if not _is_kept(path, like):
                before_build()
                built = backend.build(
                    sources[role], folder, _options_of(like), name=name, expose=like.exposed, progress=progress
                )
                _check_same(built, like)
            paths.append(path)
        found[role] = tuple(paths)
    return found


def _is_kept(path: Path, like: EngineArtifact) -> bool:
    """Whether a whole build that differs from `like` in nothing but chance is there."""
    if not path.is_file():
        return False
    try:
        engine, _ = read_plan(path, backend=like.backend)
    except MasksparseError:  # damaged: it is made again
        return False
    return _identity(engine) == _identity(like)


def _identity(engine: EngineArtifact) -> Mapping[str, object]:
    return engine.model_dump(include={"backend", "source_sha256", "precision", "options", "versions", "device", "exposed"})


def _options_of(engine: EngineArtifact) -> EngineOptions:
    """The options that an engine was built with, as its metadata keep them, but for the timing cache."""
    return built_options(engine.options).model_copy(update={"backend": engine.backend, "timing_cache": NO_TIMING_CACHE})


def _check_source(role: EngineRole, engine: EngineArtifact, onnx_path: Path) -> None:
    found = read_source(onnx_path).graph.sha256
    if found != engine.source_sha256:
        raise ArtifactError(
            f"the {role} engine was built from the ONNX file {engine.source_sha256}, and {onnx_path} is {found}: give the file "
            "that it was built from, or build it again"
        )


def _check_same(built: EngineArtifact, like: EngineArtifact) -> None:
    """That a further build is one of the same engine: made here by the same versions, and with the same options."""
    for field, expected in _identity(like).items():
        found = _identity(built)[field]
        if found != expected:
            raise ArtifactError(
                f"a further build differs from the deployed engine in {field}: {found} instead of {expected}; run "
                "'masksparse build' again on this machine"
            )
