"""Times of TensorRT's kernels, kept in a file between builds: one file for each device and version, shared by processes.

A file is one line of JSON, the key and the digest of what follows, and the runtime's own cache. TensorRT takes a damaged cache,
or that of another device, for an empty one with no more than a line in its log; hence the digest and the key.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from masksparse_deploy.core.artifacts.engines import DeviceFacts
from masksparse_deploy.core.files import canonical_json, make_folder, output_error, sha256_bytes, write_atomic
from masksparse_deploy.core.optional import require

__all__ = ["TimingCache", "cache_key", "timing_cache_in"]

_KEY_DIGITS = 12
# Options that decide on the tactics that are tried.
_CHOICES = (
    "sparse_tactics",
    "tactic_sources",
    "optimization_level",
    "workspace_mib",
    "refit",
    "hardware_compatibility",
    "version_compatible",
)
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.]+")


def cache_key(
    device: DeviceFacts, versions: Mapping[str, str], options: Mapping[str, object], *, precision: str
) -> dict[str, str]:
    """All that the kept times depend on besides the layers: a cache keeps one tactic a layer, of those that were allowed.

    NVIDIA's page "Optimizing Builder Performance" (TensorRT 10.16) names device, versions and what changes how a layer is
    implemented.

    Args:
        device: the GPU.
        versions: of the packages.
        options: of the engine, as its metadata keep them; shapes do not count, as they belong to the layers.
        precision: of the file, which older versions are told by options of the builder.
    """
    details = {name: device.details.get(name, "") for name in ("compute_capability", "cuda_driver", "memory_mib", "mig")}
    chosen = {name: str(options.get(name, "")) for name in _CHOICES}
    return {"device": device.name, "tensorrt": versions.get("tensorrt", ""), "precision": precision, **details, **chosen}


def timing_cache_in(folder: Path, key: Mapping[str, str]) -> "TimingCache":
    """The cache for `key` in `folder`; nothing is read or written yet."""
    digest = sha256_bytes(canonical_json(dict(key)))[:_KEY_DIGITS]
    words = _NOT_IN_NAMES.sub("_", f"{key['device']}-{key['tensorrt']}")
    return TimingCache(path=folder / f"{words}-{digest}.timing", key=key)


@dataclass(frozen=True)
class TimingCache:
    """A file of kernel times; each use of it holds a lock, so that processes may share it.

    Attributes:
        path: the file; it may not exist yet.
        key: what the times depend on; a file of another key is not used.
    """

    path: Path
    key: Mapping[str, str]

    def read(self) -> tuple[bytes, str]:
        """The runtime's cache, b"" if there is none yet, and a sentence where the file was set aside; raises OutputError."""
        with self._locked():
            return self._read()

    def update(self, merge: Callable[[bytes], bytes]) -> str:
        """Write what `merge` makes of the cache in the file, which others may have written since; a sentence as for `read`.

        Raises:
            OutputError: the file cannot be written.
        """
        with self._locked():
            content, warning = self._read()
            merged = merge(content)
            header = json.dumps({"key": dict(self.key), "sha256": sha256_bytes(merged)}, sort_keys=True)
            write_atomic(self.path, header.encode() + b"\n" + merged)
        return warning

    def set_aside(self, reason: str) -> str:
        """Rename the file, so that the next build begins a new one; returns a sentence that says so, with `reason`."""
        with self._locked():
            return self._set_aside(reason)

    def _set_aside(self, reason: str) -> str:
        aside = self.path.with_name(self.path.name + ".damaged")
        with suppress(FileNotFoundError):  # another process was faster
            self.path.replace(aside)
        return f"the timing cache {self.path} {reason}; it was set aside as {aside.name}, and all kernels are timed anew"

    def _read(self) -> tuple[bytes, str]:
        try:
            whole = self.path.read_bytes()
        except FileNotFoundError:
            return b"", ""
        except OSError as error:
            raise output_error(self.path, error) from error
        header, _, content = whole.partition(b"\n")
        try:
            told = json.loads(header)
        except ValueError:
            return b"", self._set_aside("is damaged: it does not begin with its key")
        if not isinstance(told, dict) or told.get("sha256") != sha256_bytes(content):
            return b"", self._set_aside("is damaged: its content has not the digest it begins with")
        if told.get("key") != dict(self.key):
            return b"", self._set_aside("holds the times of another device or version")
        return content, ""

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_folder(self.path.parent)
        locks = require("polygraphy.util", needed_for="sharing a timing cache among processes")
        with ExitStack() as stack:
            try:
                stack.enter_context(locks.LockFile(str(self.path)))
            except OSError as error:  # a folder that takes no files, or a file system without locks
                raise output_error(self.path, error) from error
            yield
