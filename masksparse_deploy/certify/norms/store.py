"""Operator norms of earlier runs, in a file beside the certificate; docs/bounds.md says how far it is trusted."""

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

from masksparse_deploy.certify.norms.convolution import Evaluated
from masksparse_deploy.core.artifacts.document import Document, Record
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, sha256_bytes

__all__ = ["NormStore"]


class _Entry(Record):
    """The fields of an `Evaluated`."""

    value: float
    method: str
    cells: tuple[int, ...]
    cell: tuple[int, ...]
    group: int


class _NormFile(Document):
    """What is on disk: entries by digest, and the SHA-256 of their canonical JSON against accidents."""

    kind: ClassVar[str] = "operator norms"

    entries: Mapping[str, _Entry]
    entries_sha256: str


class NormStore:
    """The norms in one file, which is written when the caller says so.

    A file that is damaged or of another version is ignored, and the next `save` replaces it.

    Args:
        path: of the file, which need not exist.

    Attributes:
        remark: why the file was ignored, None if it was not.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.remark: str | None = None
        self._entries: dict[str, _Entry] = {}
        self._used: dict[str, _Entry] = {}
        if not path.is_file():
            return
        try:
            content = _NormFile.read(path)
            if content.entries_sha256 != _seal(content.entries):
                raise ArtifactError(f"{path} is not as it was written")
        except (ArtifactError, OSError) as error:
            self.remark = f"known norms are ignored and computed anew: {error}"
        else:
            self._entries = dict(content.entries)

    def find(self, key: str) -> Evaluated | None:
        """What an earlier run found, not checked; see `is_plausible`."""
        entry = self._entries.get(key)
        return None if entry is None else Evaluated(**entry.model_dump())

    def keep(self, key: str, found: Evaluated) -> None:
        """Write `found` with the next `save`."""
        self._used[key] = _Entry(**{name: getattr(found, name) for name in _Entry.model_fields})

    def save(self) -> None:
        """Write the norms that this run used, and no others, so that the file does not grow; raises OutputError."""
        if self._used and self._used != self._entries:
            _NormFile(entries=self._used, entries_sha256=_seal(self._used)).write(self._path)


def _seal(entries: Mapping[str, _Entry]) -> str:
    return sha256_bytes(canonical_json({key: entry.model_dump(mode="json") for key, entry in entries.items()}))
