"""What every JSON artifact has in common: a kind, a schema version, strict reading, atomic canonical writing."""

import json
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import pydantic

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, require_file, sha256_bytes, write_atomic

__all__ = ["Document", "Interval", "Record", "SkippedLayer", "Verdict"]

Verdict = Literal["pass", "fail", "inconclusive"]

_Self = TypeVar("_Self", bound="Document")


class Record(pydantic.BaseModel):
    """A frozen part of a document; unknown keys, NaN and infinities are refused."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Document(Record):
    """A JSON artifact on disk. Subclasses set `kind`, written into the file and checked when it is read."""

    kind: ClassVar[str] = "document"
    version: ClassVar[int] = 1

    def to_bytes(self) -> bytes:
        """Canonical JSON: the same values give the same bytes."""
        return canonical_json({"kind": self.kind, "schema_version": self.version, **self.model_dump(mode="json")})

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256_bytes(self.to_bytes())

    def write(self, path: Path) -> None:
        """Write to `path`, whole or not at all; raises OutputError."""
        write_atomic(path, self.to_bytes())

    @classmethod
    def read(cls: type[_Self], path: Path) -> _Self:
        """Read and validate; raises UsageError for a missing file, ArtifactError for a damaged or foreign one."""
        try:
            content: Any = json.loads(require_file(path, cls.kind).read_bytes())
        except (ValueError, RecursionError) as error:
            raise ArtifactError(f"{path} is not valid JSON ({error}); write it again with the stage that makes it") from error
        if not isinstance(content, dict) or content.pop("kind", None) != cls.kind:
            raise ArtifactError(f"{path} is not a masksparse {cls.kind} file; check the path")
        found = content.pop("schema_version", None)
        if found != cls.version:
            raise ArtifactError(f"{path} has schema version {found}; this version reads {cls.version}: run its stage again")
        try:
            return cls.model_validate_json(json.dumps(content))
        except pydantic.ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtifactError(f"{path}: {where}: {first['msg']}; the file is damaged: run its stage again") from error


class SkippedLayer(Record):
    """A layer that stays dense, and why."""

    name: str
    reason: str
    weight_count: int
    mac_count: int


class Interval(Record):
    """A two-sided confidence interval; `confidence` is the coverage, as 0.95."""

    low: float
    high: float
    confidence: float
