"""The certificate as a file: strict reading and the seal, written from docs/check.md and not from the code that writes it."""

import dataclasses
import hashlib
import json
import math
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from masksparse_deploy.checker.errors import DamagedError, UsageError

__all__ = ["CertificateRecord", "ClaimRecord", "LayerRecord", "canonical_json", "read_certificate", "seal_of"]

KIND = "certificate"
VERSION = 2

_Record = TypeVar("_Record")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerRecord:
    """One entry of `layers`."""

    layer: str
    node: str
    initializer: str
    removed_norm: float
    difference_norm: float
    dense_norm: float
    sparse_norm: float
    bias_difference: float
    output_positions: int
    method: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClaimRecord:
    """One entry of `claims`."""

    name: str
    statement: str
    bound: float | None
    unit: str
    method: str
    assumptions: tuple[str, ...]
    status: str
    detail: str
    measured: float | None
    tightness: float | None
    certified_count: int | None
    sample_count: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CertificateRecord:
    """A whole certificate; `sealed_sha256` is what the seal should be, computed from the content."""

    dense_sha256: str
    sparse_sha256: str
    data_sha256: str
    grid: int
    layers: tuple[LayerRecord, ...]
    claims: tuple[ClaimRecord, ...]
    smallest: str | None
    unsupported: tuple[str, ...]
    seal_sha256: str
    sealed_sha256: str = dataclasses.field(metadata={"computed": True})


def read_certificate(path: Path) -> CertificateRecord:
    """Read a certificate; every key must be there, of its type, and no other.

    Raises:
        UsageError: there is no such file.
        DamagedError: not JSON, another kind or version, unknown, missing or repeated keys, wrong types, NaN or infinities.
    """
    if not path.is_file():
        raise UsageError(f"certificate {path} does not exist; give the file that 'masksparse certify' wrote")
    try:
        content: Any = json.loads(
            path.read_bytes(), object_pairs_hook=_without_repetition, parse_constant=_finite, parse_float=_finite
        )
    except (ValueError, RecursionError) as error:
        raise DamagedError(f"{path} is not valid JSON ({error}); run 'masksparse certify' again") from error
    if not isinstance(content, dict) or content.get("kind") != KIND:
        raise DamagedError(f"{path} is not a masksparse {KIND} file; check the path")
    found = content.get("schema_version")
    if found != VERSION or isinstance(found, bool):
        raise DamagedError(f"{path} has schema version {found}; this checker reads {VERSION}: run 'masksparse certify' again")
    try:
        fields = {key: value for key, value in content.items() if key not in ("kind", "schema_version")}
        return _record(CertificateRecord, fields, "the certificate", sealed_sha256=seal_of(content))
    except ValueError as error:
        raise DamagedError(f"{path}: {error}; the file is damaged: run 'masksparse certify' again") from error


def seal_of(content: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON of a certificate without its field `seal_sha256`."""
    unsealed = {key: value for key, value in content.items() if key != "seal_sha256"}
    return hashlib.sha256(canonical_json(unsealed)).hexdigest()


def canonical_json(value: Any) -> bytes:
    """UTF-8, keys sorted, two spaces of indentation, no escapes but those JSON demands, one newline at the end."""
    return (json.dumps(value, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        raise ValueError("a key occurs twice in one object")
    return content


def _finite(text: str) -> float:
    """A number; not NaN, infinity, or what is too large for 64 bits, such as 1e999."""
    if not math.isfinite(float(text)):
        raise ValueError(f"{text} is no finite number")
    return float(text)


def _record(kind: type[_Record], content: Any, where: str, **computed: Any) -> _Record:
    if not isinstance(content, dict):
        raise ValueError(f"{where} is not an object")
    hints = {name: hint for name, hint in typing.get_type_hints(kind).items() if name not in computed}
    if missing := sorted(hints.keys() - content.keys()):
        raise ValueError(f"{where} lacks {', '.join(missing)}")
    if unknown := sorted(content.keys() - hints.keys()):
        raise ValueError(f"{where} has the unknown {', '.join(unknown)}")
    return kind(**{name: _value(hint, content[name], f"{where}: {name}") for name, hint in hints.items()}, **computed)


def _value(hint: Any, value: Any, where: str) -> Any:
    """`value` if it is of the type `hint`: a record, a number, text, None, or a tuple of such."""
    if isinstance(hint, types.UnionType):
        if value is None:
            return None
        hint = next(part for part in typing.get_args(hint) if part is not types.NoneType)
    if typing.get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is not a list")
        return tuple(_value(typing.get_args(hint)[0], item, f"{where}[{index}]") for index, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return _record(typing.cast(type, hint), value, where)
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or isinstance(value, bool):
        raise ValueError(f"{where} is {value!r}, not {hint.__name__}")
    try:
        return hint(value)
    except OverflowError as error:
        raise ValueError(f"{where} is too large for a number of 64 bits") from error
