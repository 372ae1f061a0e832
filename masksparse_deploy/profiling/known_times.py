"""Times of earlier runs, in a file: what was timed once on a device with the same versions is not timed again."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import onnx

from masksparse_deploy.core.artifacts.document import Document, Interval, Record
from masksparse_deploy.core.artifacts.engines import BackendStatus
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, output_error, sha256_bytes
from masksparse_deploy.engine.processor import available_core_count

__all__ = ["TimeStore", "Times", "time_key"]

# Contents of larger constants do not change how long an operator takes, those of smaller ones (shapes, axes) do.
_LARGEST_PARAMETER = 16


class Times(Record):
    """Times of several models that were run in turn.

    Attributes:
        median_ms: of each, the first is what the others are compared with.
        speedups: the first one's time over each one's.
        intervals: of these.
        rounds: how often each was timed.
        round_ms: of each the medians of all rounds, in the order they were taken, where these are kept.
        tactics: of each the kernel that the layer in question runs, "" where the runtime does not tell; where these are kept.
    """

    median_ms: tuple[float, ...]
    speedups: tuple[float, ...]
    intervals: tuple[Interval, ...]
    rounds: int
    round_ms: tuple[tuple[float, ...], ...] = ()
    tactics: tuple[str, ...] = ()


class _TimesFile(Document):
    """What is on disk: times by key, and the SHA-256 of their canonical JSON against accidents."""

    kind: ClassVar[str] = "known times"

    entries: Mapping[str, Times]
    entries_sha256: str


class TimeStore:
    """The times in one file, which is written when the caller says so.

    A file that is damaged or of another version is set aside, under its name with ".damaged" behind it.

    Args:
        path: of the file, which need not exist.

    Attributes:
        remark: what was done about a damaged file, None if there is none.

    Raises:
        OutputError: the damaged file cannot be moved.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.remark: str | None = None
        self._entries: dict[str, Times] = {}
        if not path.is_file():
            return
        try:
            content = _TimesFile.read(path)
            if content.entries_sha256 != _seal(content.entries):
                raise ArtifactError(f"{path} is not as it was written")
        except ArtifactError as error:
            aside = path.with_name(f"{path.name}.damaged")
            try:
                path.replace(aside)
            except OSError as cause:
                raise output_error(aside, cause) from cause
            self.remark = f"known times were set aside as {aside.name}, and layers timed anew: {error}"
        else:
            self._entries = dict(content.entries)

    def find(self, key: str, *, rounds: int) -> Times | None:
        """What an earlier run found in at least so many rounds."""
        entry = self._entries.get(key)
        return entry if entry is not None and entry.rounds >= rounds else None

    def keep(self, key: str, times: Times) -> None:
        """Remember times and write the file, so that an interrupted run goes on from there; raises OutputError."""
        self._entries[key] = times
        _TimesFile(entries=self._entries, entries_sha256=_seal(self._entries)).write(self._path)


def time_key(models: Mapping[str, onnx.ModelProto], options: EngineOptions, status: BackendStatus) -> str:
    """A digest of all that decides how long models take to run, their weights' values left out."""
    cores = available_core_count()
    return sha256_bytes(
        canonical_json(
            {
                "models": [_structure_sha256(model) for model in models.values()],
                "options": options.model_dump(mode="json"),
                # 0 threads stand for all cores, and many threads share few, which may be others next time
                "cores": min(options.threads or cores, cores),
                "versions": status.versions,
                "device": None if status.device is None else status.device.model_dump(mode="json"),
            }
        )
    )


def _structure_sha256(model: onnx.ModelProto) -> str:
    digest = hashlib.sha256()
    for message in (*model.graph.node, *model.graph.input, *model.graph.output, *model.opset_import):
        digest.update(message.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name}|{tensor.data_type}|{tuple(tensor.dims)}|".encode())
        size = 1
        for length in tensor.dims:
            size *= length
        if size <= _LARGEST_PARAMETER and tensor.data_type in (onnx.TensorProto.INT64, onnx.TensorProto.INT32):
            digest.update(onnx.numpy_helper.to_array(tensor).tobytes())
    return digest.hexdigest()


def _seal(entries: Mapping[str, Times]) -> str:
    return sha256_bytes(canonical_json({key: entry.model_dump(mode="json") for key, entry in entries.items()}))
