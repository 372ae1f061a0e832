"""The state of interrupted learning, on disk: tensors and plain values, with the key of the run it belongs to."""

import io
from pathlib import Path
from typing import Any

import torch

from masksparse_deploy.core.files import sha256_bytes, write_atomic

__all__ = ["read_checkpoint", "write_checkpoint"]

_DIGEST_LENGTH = 64


def write_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, whole or not at all; raises OutputError.

    `key` is a digest of everything that the run depends on.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, sha256_bytes(key.encode() + payload).encode() + payload)


def read_checkpoint(path: Path, key: str) -> dict[str, Any] | None:
    """The state that was written with the same key; None if there is none, or it is damaged or of another run."""
    if not path.is_file():
        return None
    data = path.read_bytes()
    digest, payload = data[:_DIGEST_LENGTH], data[_DIGEST_LENGTH:]
    if digest != sha256_bytes(key.encode() + payload).encode():
        return None
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
