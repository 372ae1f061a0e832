import json
from pathlib import Path
from typing import ClassVar

import pydantic
import pytest

from masksparse_deploy.core.artifacts.document import Document, Interval
from masksparse_deploy.core.errors import ArtifactError, UsageError


class Sample(Document):
    """For these tests."""

    kind: ClassVar[str] = "sample"

    name: str
    interval: Interval


SAMPLE = Sample(name="x", interval=Interval(low=0.1, high=0.2, confidence=0.95))


def test_a_document_survives_the_disk(tmp_path: Path) -> None:
    SAMPLE.write(tmp_path / "a.json")
    assert Sample.read(tmp_path / "a.json") == SAMPLE
    assert json.loads((tmp_path / "a.json").read_text())["schema_version"] == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kind": "other"}, "not a masksparse sample file"),
        ({"schema_version": 2}, "schema version 2; this version reads 1"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"name": 3}, "name: Input should be a valid string"),
        ({"interval": {"low": 0.1, "high": 0.2}}, "interval.confidence: Field required"),
    ],
)
def test_a_foreign_or_damaged_document_is_refused(tmp_path: Path, change: dict[str, object], words: str) -> None:
    content = json.loads(SAMPLE.to_bytes()) | change
    (tmp_path / "a.json").write_text(json.dumps(content))
    with pytest.raises(ArtifactError, match=words):
        Sample.read(tmp_path / "a.json")


@pytest.mark.parametrize("damaged", [SAMPLE.to_bytes()[:40], b"[" * 100_000], ids=["truncated", "nested without end"])
def test_what_is_no_json_is_damaged(tmp_path: Path, damaged: bytes) -> None:
    (tmp_path / "a.json").write_bytes(damaged)
    with pytest.raises(ArtifactError, match="not valid JSON"):
        Sample.read(tmp_path / "a.json")


def test_a_missing_document(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        Sample.read(tmp_path / "b.json")


def test_documents_are_frozen_and_refuse_nan() -> None:
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        SAMPLE.name = "y"  # type: ignore[misc]
    with pytest.raises(pydantic.ValidationError, match="finite"):
        Interval(low=float("nan"), high=1.0, confidence=0.9)
