"""Whether a stage must run: its key covers everything that went in, its stamp records what came out."""

import hashlib
from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, ClassVar

import masksparse_deploy
from masksparse_deploy.core.artifacts.document import Document
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, sha256_bytes, sha256_file

__all__ = ["Stamp", "is_current", "package_versions", "stage_key", "write_stamp"]

FOLDER = ".stages"
# A new release of one of these may change an artifact.
PACKAGES = (
    "accelerate",
    "numpy",
    "onnx",
    "onnx-ir",
    "onnxruntime",
    "onnxruntime-gpu",
    "onnxscript",
    "scipy",
    "tensorrt",
    "torch",
)


class Stamp(Document):
    """Written after a stage has ended well: its key, and the digest of every output by file name."""

    kind: ClassVar[str] = "stage stamp"

    stage: str
    key_sha256: str
    outputs: dict[str, str]


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that artifacts depend on, as far as they are installed."""
    found = {"masksparse-deploy": masksparse_deploy.__version__}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def stage_key(stage: str, inputs: dict[str, Any]) -> str:
    """The digest of a stage's name, its inputs, the code and the packages it runs with."""
    content = {"stage": stage, "inputs": inputs, "versions": package_versions(), "code": _code_sha256()}
    return sha256_bytes(canonical_json(content))


def is_current(folder: Path, stage: str, key: str) -> bool:
    """Whether `stage` has run in `folder` with this key and all its outputs are there, unchanged."""
    path = _path(folder, stage)
    if not path.is_file():
        return False
    try:
        stamp = Stamp.read(path)
    except ArtifactError:  # a damaged stamp only means that the stage runs again
        return False
    if stamp.key_sha256 != key:
        return False
    outputs = {folder / name: digest for name, digest in stamp.outputs.items()}
    return all(output.is_file() and sha256_file(output) == digest for output, digest in outputs.items())


def write_stamp(folder: Path, stage: str, key: str, outputs: Iterable[str]) -> None:
    """Record that `stage` has ended well and what it wrote; raises OutputError."""
    digests = {name: sha256_file(folder / name) for name in outputs}
    Stamp(stage=stage, key_sha256=key, outputs=digests).write(_path(folder, stage))


def _path(folder: Path, stage: str) -> Path:
    return folder / FOLDER / f"{stage}.json"


def _code_sha256() -> str:
    """So that artifacts of an edited or upgraded package are never taken for its own."""
    root = Path(masksparse_deploy.__file__).parent
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*")):
        if file.suffix in (".py", ".j2", ".css"):
            digest.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()
