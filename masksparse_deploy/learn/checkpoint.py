"""The state of interrupted learning, on disk: tensors and plain values, with the key of the run it belongs to."""

import io
from pathlib import Path
from typing import Any

import torch

from masksparse_deploy.core.files import sha256_bytes, write_atomic

__all__ = ["decode_state", "read_checkpoint", "write_checkpoint"]

_DIGEST_LENGTH = 64


def write_checkpoint(path: Path, key: str, state: dict[str, Any]) -> None:
    """Write `state` (tensors and plain values) to `path`, whole or not at all; raises OutputError.

    `key` is a digest of everything that the run depends on.
    """
    buffer = io.BytesIO()
    torch.save(state, buffer)
    payload = buffer.getvalue()
    write_atomic(path, sha256_bytes(key.encode() + payload).encode() + payload)


def read_checkpoint(path: Path, key: str) -> bytes:
    """What was written with the same key, for `decode_state`; empty if there is none, or it is damaged or of another run."""
    if not path.is_file():
        return b""
    data = path.read_bytes()
    digest, payload = data[:_DIGEST_LENGTH], data[_DIGEST_LENGTH:]
    return payload if digest == sha256_bytes(key.encode() + payload).encode() else b""


def decode_state(payload: bytes) -> dict[str, Any]:
    """The state in what `read_checkpoint` returned, its tensors on the CPU."""
    state: dict[str, Any] = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
    return state
