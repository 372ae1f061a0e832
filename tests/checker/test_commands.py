"""The check as a user runs it, by both doors: exit codes, lines and JSON."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from masksparse_deploy.checker.__main__ import main
from masksparse_deploy.checker.document import canonical_json, seal_of
from masksparse_deploy.checker.errors import DamagedError, UsageError
from masksparse_deploy.checker.images import Images, read_images
from masksparse_deploy.cli.main import run
from masksparse_deploy.core.config import DataOptions
from masksparse_deploy.core.samples import read_samples
from tests.checker.cases import Case


@pytest.fixture
def data(case: Case, tmp_path: Path) -> Path:
    path = tmp_path / "test.npz"
    np.savez(path, images=case.images.images, labels=case.images.labels)  # type: ignore[arg-type]
    return path


def by_module(case: Case, certificate: Path, *more: str | Path) -> int:
    return main([str(word) for word in (certificate, "--dense", case.dense, "--sparse", case.sparse, *more)])


def by_verb(case: Case, certificate: Path, *more: str | Path) -> int:
    words = ("certify", "--check", certificate, "--dense", case.dense, "--sparse", case.sparse, *more)
    return run([str(word) for word in words])


DOORS = pytest.mark.parametrize("door", [by_module, by_verb])


@DOORS
def test_what_holds_is_verified(case: Case, data: Path, door: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(case, case.certificate, "--data", data) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].endswith(" verified, 0 wrong, 0 not checked; the certificate is verified")
    assert any(line.startswith("verified     layer layer1.conv1: initializer, layer, removed_norm") for line in lines)


@DOORS
def test_without_images_the_rest_is(case: Case, door: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(case, case.certificate) == 0
    out = capsys.readouterr().out
    assert "not checked  claim end-to-end, hybrid: bound, measured, certified_count, detail: needs the images" in out
    assert out.endswith("the certificate is verified except what needs the images\n")


@DOORS
def test_what_is_wrong_is_told_with_both_values(
    case: Case, tmp_path: Path, data: Path, door: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    content = case.content
    content["layers"][1]["dense_norm"] /= 2
    path = tmp_path / "tampered.json"
    path.write_bytes(canonical_json({**content, "seal_sha256": seal_of(content)}))
    assert door(case, path, "--data", data) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "dense_norm: recorded" in line)
    assert line.startswith("wrong        layer layer1.conv1: dense_norm: recorded ")
    assert line.endswith("(below what can be proved here)")
    assert door(case, path, "--data", data, "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["kind"], report["answer"], report["counts"]["wrong"]) == ("certificate-check", "wrong", 1)
    (finding,) = (finding for finding in report["findings"] if finding["status"] == "wrong")
    assert finding["found"] == pytest.approx(2 * finding["recorded"], rel=1e-3)


@DOORS
def test_other_images_are_told_from_the_certificates(
    case: Case, tmp_path: Path, door: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", images=case.images.images[::-1], labels=case.images.labels)  # type: ignore[arg-type]
    assert door(case, case.certificate, "--data", tmp_path / "other.npz") == 1
    out = capsys.readouterr().out
    assert "wrong        certificate: data_sha256: recorded " in out
    assert "certified_count, detail: the images are not those of the certificate" in out


@DOORS
def test_what_cannot_be_checked_at_all(case: Case, tmp_path: Path, door: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert door(case, tmp_path / "none.json") == 2
    assert "masksparse: certificate " in capsys.readouterr().err
    (tmp_path / "cut.json").write_bytes(case.certificate.read_bytes()[:300])
    assert door(case, tmp_path / "cut.json") == 4
    assert "is not valid JSON" in capsys.readouterr().err
    assert door(case, case.certificate, "--data", tmp_path / "none.npz") == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--check", "c.json", "--out", "x.json"], "--check writes no file and takes grid and samples from the certificate"),
        (["--check", "c.json", "--grid", "8"], "--check writes no file and takes grid and samples from the certificate"),
        (["--out", "x.json"], "--data is missing: only --check does without it"),
        (["--data", "DATA"], "--out is missing: only --check does without it"),
    ],
)
def test_options_that_do_not_go_together(
    case: Case, data: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    words = ["certify", "--dense", str(case.dense), "--sparse", str(case.sparse)]
    assert run([*words, *(str(data) if option == "DATA" else option for option in options)]) == 2
    assert message in capsys.readouterr().err


def test_a_bug_is_not_the_answer_no(case: Case, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delattr("masksparse_deploy.checker.run.check_layer_list")
    assert by_module(case, case.certificate) == 70
    assert "this is a bug in masksparse; please report it" in capsys.readouterr().err


@pytest.mark.parametrize("channels", [0, 1, 3])
def test_images_are_those_that_the_certify_stage_reads(tmp_path: Path, channels: int) -> None:
    generator = np.random.default_rng(0)
    shape = (5, 8, 8, channels) if channels else (5, 8, 8)
    mean, std = ((0.4, 0.5, 0.6)[: channels or 1], (0.2, 0.3, 0.25)[: channels or 1])
    pixels = generator.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "bytes.npz", images=pixels, labels=np.arange(5, dtype=np.int32))
    np.savez(tmp_path / "real.npz", images=generator.standard_normal((5, 3, 8, 8)))
    for name, numbers in (("bytes.npz", {"mean": mean, "std": std}), ("real.npz", {})):
        assert set(numbers) <= set(DataOptions.model_fields)
        other = read_samples(name, folder=tmp_path, **numbers)
        own = read_images(tmp_path / name, **numbers)
        assert own.sha256 == other.digest
        assert np.array_equal(own.images, other.images)
        assert read_images(tmp_path / name, **numbers, limit=2).sha256 == other.first(2).digest
    assert Images(images=own.images[:1], labels=None).sha256 != own.sha256


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": np.zeros((1, 1, 8, 8))}, "has no array 'images'; it holds pictures"),
        ({"images": np.zeros((1, 8, 8))}, r"images are float64 \(1, 8, 8\), not real numbers"),
        ({"images": np.zeros((1, 1, 8, 8), np.int64)}, "images are int64"),
        ({"images": np.zeros((0, 1, 8, 8))}, "images are float64"),
    ],
)
def test_images_that_are_none(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    np.savez(tmp_path / "test.npz", **arrays)
    with pytest.raises(UsageError, match=message):
        read_images(tmp_path / "test.npz")


def test_a_damaged_archive(tmp_path: Path) -> None:
    (tmp_path / "test.npz").write_bytes(b"PK\x03\x04 and nothing else")
    with pytest.raises(DamagedError, match=r"is damaged or not an \.npz file"):
        read_images(tmp_path / "test.npz")
