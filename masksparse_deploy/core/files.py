"""Files: digests, and outputs that appear whole or not at all."""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from masksparse_deploy.core.errors import OutputError, UsageError

__all__ = [
    "atomic_output",
    "canonical_json",
    "make_folder",
    "output_error",
    "require_file",
    "sha256_bytes",
    "sha256_file",
    "write_atomic",
]

_CHUNK_BYTES = 1 << 20


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of `data`, in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path, what: str = "file") -> str:
    """The SHA-256 of a file's content, in lower-case hexadecimal; reads it in pieces.

    Raises:
        UsageError: there is no such file; the message calls it `what`.
    """
    digest = hashlib.sha256()
    with require_file(path, what).open("rb") as stream:
        while chunk := stream.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def require_file(path: Path, what: str) -> Path:
    """Return `path` if it is a readable file, else raise a UsageError that says what is missing."""
    if path.is_file():
        return path
    if path.is_dir():
        raise UsageError(f"{what} {path} is a folder; give the path of a file")
    parent = path.parent
    found = sorted(p.name for p in parent.iterdir() if p.is_file())[:5] if parent.is_dir() else []
    if found:
        hint = f"{parent} holds {', '.join(found)}"
    else:
        hint = f"{parent} " + ("is empty" if parent.is_dir() else "does not exist")
    raise UsageError(f"{what} {path} does not exist ({hint}); check the path")


def make_folder(path: Path) -> Path:
    """Create `path` and its parents where needed and return it; raises OutputError where that is not possible."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
    return path


@contextmanager
def atomic_output(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; move it there when the block ends well, remove it when it does not.

    What an earlier process left behind under such a name, killed before it could move it, is removed first. Of two processes
    that write the same file at the same time, the one that ends last wins.
    """
    make_folder(path.parent)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        _remove_stale(path)
        yield partial
        with partial.open("rb") as stream:
            os.fsync(stream.fileno())
        partial.replace(path)
    except OSError as error:
        raise output_error(path, error) from error
    finally:
        with suppress(OSError):  # what stopped the writing may stop the removal too, and is told already
            partial.unlink(missing_ok=True)


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`, whole or not at all; raises OutputError."""
    with atomic_output(path) as partial:
        partial.write_bytes(data)


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, two spaces of indentation and a final newline; refuses NaN and infinities."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def output_error(path: Path, error: OSError) -> OutputError:
    """What a failed write to `path` means to the user, with the remedy."""
    if error.errno == errno.ENOSPC:
        free = _free_bytes(path)
        return OutputError(
            f"no space left on the device while writing {path} ({free:,} bytes free); free some space or choose another "
            "output folder, then run the same command again: it continues where it stopped"
        )
    if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
        return OutputError(f"{path} cannot be written ({error.strerror}); choose an output folder that you may write to")
    return OutputError(f"{path} cannot be written ({error.strerror or error}); choose another output folder")


def _remove_stale(path: Path) -> None:
    """Remove the temporary files of `path` whose process is gone."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.(\d+)\.partial")
    for entry in path.parent.iterdir():
        match = pattern.fullmatch(entry.name)
        if match and not _is_running(int(match[1])):
            entry.unlink(missing_ok=True)


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there the call below would send a signal, so nothing counts as gone
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def _free_bytes(path: Path) -> int:
    for folder in path.parents:
        if folder.is_dir():
            return shutil.disk_usage(folder).free
    return 0
