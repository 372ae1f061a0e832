"""Certificates to check, made by the certify stage, and ways to tamper with them."""

import copy
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from masksparse_deploy.certify.run import certify
from masksparse_deploy.checker.document import canonical_json, read_certificate, seal_of
from masksparse_deploy.checker.errors import DamagedError
from masksparse_deploy.checker.findings import Report
from masksparse_deploy.checker.images import Images
from masksparse_deploy.checker.run import check_record
from masksparse_deploy.checker.sources import Sources
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.samples import Samples
from tests.models.make_onnx import residual_pair

# A grid on which some layers of the small network have bound (a) and others (b).
GRID = 7
SAMPLE_COUNT = 6
Models = tuple[onnx.ModelProto, onnx.ModelProto]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A certificate with all it is about."""

    folder: Path
    images: Images

    @property
    def dense(self) -> Path:
        return self.folder / "dense.onnx"

    @property
    def sparse(self) -> Path:
        return self.folder / "sparse.onnx"

    @property
    def certificate(self) -> Path:
        return self.folder / "certificate.json"

    @property
    def content(self) -> dict[str, Any]:
        content: dict[str, Any] = json.loads(self.certificate.read_text())
        return content

    def sources(self, *, with_images: bool = True) -> Sources:
        return Sources(self.dense, self.sparse, self.images if with_images else None)


def make_case(folder: Path, models: Models, images: np.ndarray[Any, Any], *, grid: int = GRID) -> Case:
    """Write two models and their certificate."""
    samples = Samples(images.astype(np.float32), np.arange(len(images)) % 3)
    case = Case(folder=folder, images=Images(images=samples.images, labels=samples.known_labels))
    for path, model in zip((case.dense, case.sparse), models, strict=True):
        path.write_bytes(model.SerializeToString())
    certify(case.dense, case.sparse, samples, CertifyOptions(sample_count=SAMPLE_COUNT, grid=grid)).write(case.certificate)
    return case


def biased_pair() -> Models:
    """The residual network, of which the sparse twin has other biases and slightly other kept weights, too."""
    dense, sparse = residual_pair(channels=8, classes=4)
    for tensor in sparse.graph.initializer:
        if tensor.name.startswith(("layer1.conv1", "stem")):
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * np.float32(0.97), tensor.name))
    return dense, sparse


def random_images(count: int = 9, shape: tuple[int, ...] = (3, 8, 8)) -> np.ndarray[Any, Any]:
    return np.random.default_rng(5).standard_normal((count, *shape))


def check_content(content: dict[str, Any], sources: Sources, folder: Path, *, seal: bool = True) -> Report | DamagedError:
    """What the checker says of a certificate with this content, sealed anew if `seal`."""
    if seal:
        content = {**content, "seal_sha256": seal_of(content)}
    path = folder / "tampered.json"
    path.write_bytes(canonical_json(content))
    try:
        return check_record(read_certificate(path), sources)
    except DamagedError as error:
        return error


def tampered(content: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what was changed, the content with that change): every number, text, list and key, one at a time."""
    for path in _paths(content):
        value = _at(content, path)
        for how, changed in _changes(value):
            copied = copy.deepcopy(content)
            _at(copied, path[:-1])[path[-1]] = changed
            yield f"{'.'.join(map(str, path))}: {how}", copied
        if isinstance(path[-1], str):
            copied = copy.deepcopy(content)
            del _at(copied, path[:-1])[path[-1]]
            yield f"{'.'.join(map(str, path))}: left out", copied


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    if path:
        yield path
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _paths(inner, (*path, key))


def _at(content: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def _changes(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, bool) or value is None:
        yield "something", 1
        yield "text", "text"
    elif isinstance(value, int):
        yield "one more", value + 1
        yield "one less", value - 1
        yield "nothing", 0 if value else 7
        yield "null", None
    elif isinstance(value, float):
        yield "1 % more", value * 1.01 if value else 0.01
        yield "1 % less", value * 0.99 if value else -0.01
        if value:
            yield "zero", 0.0
            yield "the other sign", -value
        yield "null", None
    elif isinstance(value, str):
        yield "a letter more", value + "x"
        yield "empty", ""
        yield "null", None
        for number in re.finditer(r"\d+", value):
            other = str((int(number[0][-1]) + 1) % 10)
            yield f"the number {number[0]} at {number.start()}", value[: number.end() - 1] + other + value[number.end() :]
    elif isinstance(value, list):
        for index in range(len(value)):
            yield f"without {index}", value[:index] + value[index + 1 :]
            yield f"{index} twice", value[: index + 1] + value[index:]
        if len(value) > 1:
            yield "reversed", value[::-1]
        if not value:
            yield "one text", ["Relu"]
    elif isinstance(value, dict):
        yield "another key", {**value, "note": 1}
