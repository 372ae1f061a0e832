"""Weights that an ONNX file keeps in other files: where they may lie, and views of them that read nothing ahead."""

import mmap
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import sha256_file

__all__ = ["ExternalFiles"]

Bytes = npt.NDArray[np.uint8]


class ExternalFiles:
    """The files beside one ONNX file, mapped into memory when the first tensor in them is asked for.

    Only regular files inside the folder of the ONNX file are opened: no absolute path, no "..", no link that leads out.
    """

    def __init__(self, model: Path | None, name: str) -> None:
        """`model` is the path of the ONNX file, None for content that came without one; `name` is used in messages."""
        self._folder = None if model is None else model.parent
        self._name = name
        self._content: dict[str, Bytes] = {}
        self._paths: dict[str, Path] = {}

    def read(self, tensor: onnx.TensorProto, byte_count: int) -> Bytes:
        """The `byte_count` bytes of an external tensor, uint8, as a read-only view of the file.

        Raises:
            UsageError: the model came as bytes, so that there is no folder to look in.
            ArtifactError: the location is not allowed, the file is missing or not regular, or the place or the length is not
                that of the tensor.
        """
        entries = {entry.key: entry.value for entry in tensor.external_data}
        location = entries.get("location", "")
        content = self._open(location, tensor.name)
        offset = self._number(entries, "offset", tensor.name)
        length = self._number(entries, "length", tensor.name)
        if length is not None and length != byte_count:
            raise ArtifactError(
                f"{self._name}: {tensor.name} claims {length:,} bytes in {location}, but its shape and type take "
                f"{byte_count:,}; the file is damaged, export it again"
            )
        start = offset or 0
        if start + byte_count > len(content):
            raise ArtifactError(
                f"{self._name}: {tensor.name} lies at bytes {start:,} to {start + byte_count:,} of {location}, which has only "
                f"{len(content):,}; copy the whole file beside the model"
            )
        return content[start : start + byte_count]

    def digests(self) -> Mapping[str, str]:
        """SHA-256 of every file that was opened, by its location in the ONNX file."""
        return {location: sha256_file(path, "weights file") for location, path in sorted(self._paths.items())}

    def _open(self, location: str, tensor_name: str) -> Bytes:
        if location not in self._content:
            path = self._checked_path(location, tensor_name)
            self._content[location] = self._map(path, location)
            self._paths[location] = path
        return self._content[location]

    def _checked_path(self, location: str, tensor_name: str) -> Path:
        if self._folder is None:
            raise UsageError(
                f"{self._name} keeps weights in other files ({tensor_name} and perhaps more); put them inside with "
                "onnx.save_model(onnx.load(path), new_path, save_as_external_data=False)"
            )
        flavours = (PurePosixPath(location), PureWindowsPath(location))
        # As either system reads it: a file is written on one and read on the other.
        leaves = any(path.anchor or ".." in path.parts for path in flavours)
        if not location or "\0" in location or leaves:
            raise self._refused(location, tensor_name, "is not the name of a file beside the model")
        try:
            real = (self._folder / location).resolve(strict=True)
            folder = self._folder.resolve(strict=True)
        except (OSError, RuntimeError, ValueError) as error:  # missing, a ring of links, a name too long
            raise ArtifactError(
                f"{self._name}: the file {location!r}, which holds {tensor_name}, cannot be found "
                f"({getattr(error, 'strerror', None) or type(error).__name__}); copy it beside the model"
            ) from error
        if folder not in real.parents:
            raise self._refused(location, tensor_name, "is a link that leads out of the model's folder")
        return real

    def _map(self, path: Path, location: str) -> Bytes:
        # Without waiting for a writer, should the file be a pipe; without following a link that was just put there.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
        try:
            if not stat.S_ISREG(path.stat().st_mode):
                raise ArtifactError(
                    f"{self._name}: {location!r} is not a regular file; weights are read from regular files only"
                )
            handle = os.open(path, flags)
            try:
                size = os.fstat(handle).st_size
                # an empty file cannot be mapped
                mapped: Any = mmap.mmap(handle, 0, access=mmap.ACCESS_READ) if size else b""
            finally:
                os.close(handle)
        except OSError as error:
            raise ArtifactError(
                f"{self._name}: the weights in {location!r} cannot be read ({error.strerror or error}); check its permissions"
            ) from error
        return np.frombuffer(mapped, dtype=np.uint8)

    def _number(self, entries: Mapping[str, str], key: str, tensor_name: str) -> int | None:
        text = entries.get(key)
        if text is None or text == "":
            return None
        if re.fullmatch(r"[0-9]{1,18}", text) is None:
            raise ArtifactError(
                f"{self._name}: {tensor_name} has the {key} {text[:40]!r}, which is no number of bytes; export again"
            )
        return int(text)

    def _refused(self, location: str, tensor_name: str, why: str) -> ArtifactError:
        return ArtifactError(
            f"{self._name}: {tensor_name} lies in {location!r}, which {why}; nothing outside that folder is read: copy the "
            "file there, or put the weights inside with onnx.save_model(model, path, save_as_external_data=False)"
        )
