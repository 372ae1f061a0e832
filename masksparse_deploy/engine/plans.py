"""Reading an engine's metadata together with its plan, and refusing a plan that is not the recorded one."""

from collections.abc import Mapping
from pathlib import Path

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.config import NO_TACTIC_SOURCES, EngineOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_bytes

__all__ = ["built_options", "metadata_path", "read_plan"]


def metadata_path(folder: Path, name: str) -> Path:
    """Where the metadata of the engine `name` lies: folder / (name + ".engine.json")."""
    return folder / f"{name}.engine.json"


def read_plan(path: Path, *, backend: str) -> tuple[EngineArtifact, bytes]:
    """The metadata at `path` and the content of the plan it names.

    Raises:
        UsageError: there is no such metadata file, or the engine belongs to another backend.
        ArtifactError: the metadata is damaged, the plan is missing, or its digest is not the recorded one.
    """
    artifact = EngineArtifact.read(path)
    if artifact.backend != backend:
        raise UsageError(f"{path} was built by the backend {artifact.backend}, not {backend}; open it with {artifact.backend}")
    if Path(artifact.plan).name != artifact.plan:
        raise ArtifactError(
            f"{path} names the plan {artifact.plan!r}, which is not a file beside it; run 'masksparse build' again"
        )
    plan_path = path.parent / artifact.plan
    try:
        plan = plan_path.read_bytes()
    except FileNotFoundError as error:
        raise ArtifactError(f"the plan {plan_path} of {path.name} is missing; run 'masksparse build' again") from error
    found = sha256_bytes(plan)
    if found != artifact.plan_sha256:
        raise ArtifactError(
            f"the plan {plan_path} is not the one that {path.name} describes: recorded digest {artifact.plan_sha256}, "
            f"found {found}; run 'masksparse build' again"
        )
    return artifact, plan


def built_options(recorded: Mapping[str, str | int | bool]) -> EngineOptions:
    """The options that an engine was built with, from those that its metadata keep; where it keeps none, the defaults."""
    given: dict[str, object] = {name: value for name, value in recorded.items() if value not in ("", "default")}
    if isinstance(sources := given.get("tactic_sources"), str):
        given["tactic_sources"] = () if sources == NO_TACTIC_SOURCES else tuple(sources.split(","))
    return EngineOptions.model_validate({name: value for name, value in given.items() if name in EngineOptions.model_fields})
