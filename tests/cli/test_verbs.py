"""Every verb on the artifacts of a run gives what the chain gave."""

import json
import subprocess
from pathlib import Path
from typing import Any

from masksparse_deploy.core.files import sha256_file
from tests.project import FACTORY, masksparse


def told(result: subprocess.CompletedProcess[str], code: int = 0) -> dict[str, Any]:
    """The JSON that a verb printed."""
    assert result.returncode == code, result.stderr
    content: dict[str, Any] = json.loads(result.stdout)
    return content


def model(project: Path) -> list[str]:
    return ["--factory", FACTORY, "--weights", str(project / "model.safetensors")]


def same(first: Path, second: Path) -> bool:
    return sha256_file(first) == sha256_file(second)


def test_learn(finished: Path, tmp_path: Path) -> None:
    data = ["--train", finished / "train.npz", "--test", finished / "test.npz"]
    options = ["--method", "magnitude", "--batch-size", "32", "--calibration-count", "128"]
    report = told(masksparse("learn", *model(finished), *data, *options, "--out", tmp_path, "--json"))
    assert report["kind"] == "learn report"
    assert same(tmp_path / "masks.safetensors", finished / "out" / "masks.safetensors")


def test_bake(finished: Path, tmp_path: Path) -> None:
    inputs = ["--masks", finished / "out" / "masks.safetensors", "--data", finished / "test.npz"]
    report = told(masksparse("bake", *model(finished), *inputs, "--out", tmp_path, "--json"))
    assert report["kind"] == "bake report"
    for name in ("dense.onnx", "sparse.onnx", "probe.safetensors"):
        assert same(tmp_path / name, finished / "out" / name)


def test_lint(finished: Path) -> None:
    report = told(masksparse("lint", finished / "out" / "sparse.onnx", "--json"))
    assert [layer["state"] for layer in report["layers"]].count("conforming") == 3
    table = masksparse("lint", finished / "out" / "sparse.onnx")
    assert table.stdout.count("conforming") >= 3
    assert "at most" in table.stdout


def test_build_and_profile(finished: Path, tmp_path: Path) -> None:
    for name in ("dense", "sparse"):
        options = ["--batch", "16", "--threads", "1", "--out", tmp_path]
        told(masksparse("build", "--onnx", finished / "out" / f"{name}.onnx", *options, "--json"))
        assert same(tmp_path / f"{name}.engine.json", finished / "out" / f"{name}.engine.json")
    engines = ["--dense", tmp_path / "dense.engine.json", "--sparse", tmp_path / "sparse.engine.json"]
    options = ["--batch", "16", "--threads", "1", "--rounds", "20", "--out", tmp_path / "profile.json"]
    result = masksparse("profile", *engines, "--data", finished / "test.npz", *options, "--json")
    report = json.loads(result.stdout)
    assert result.returncode == (1 if report["invalid_because"] else 0)  # other load may spoil a run, which then says so
    assert json.loads((tmp_path / "profile.json").read_text()) == report


def test_certify_and_validate(finished: Path, tmp_path: Path) -> None:
    out, data = finished / "out", ["--data", finished / "test.npz"]
    files = ["--dense", out / "dense.onnx", "--sparse", out / "sparse.onnx"]
    certificate = tmp_path / "certificate.json"
    told(masksparse("certify", *files, *data, "--sample-count", "16", "--grid", "8", "--out", certificate, "--json"))
    assert same(certificate, out / "certificate.json")
    inputs = [
        *("--dense-engine", out / "dense.engine.json", "--sparse-engine", out / "sparse.engine.json"),
        *("--dense-onnx", out / "dense.onnx", "--sparse-onnx", out / "sparse.onnx"),
        *("--certificate", certificate, "--probe", out / "probe.safetensors", "--bake-report", out / "bake.json"),
    ]
    gates = ["--accuracy-drop-points", "100", "--flip-rate", "1", "--threads", "1", "--batch", "16"]
    report = told(masksparse("validate", *inputs, *data, *gates, "--out", tmp_path / "validation.json", "--json"))
    assert report["verdict"] == "pass"
    states = [layer[stage]["state"] for layer in report["survival"] for stage in ("module", "onnx", "converted", "engine")]
    assert len(states) == 12 and set(states) == {"conforming"}
    strict = ["--accuracy-drop-points", "0", "--flip-rate", "0", "--threads", "1", "--batch", "16"]
    report = told(masksparse("validate", *inputs, *data, *strict, "--out", tmp_path / "strict.json", "--json"), code=1)
    assert report["verdict"] == "fail"


def test_report(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "learn.json").write_bytes((finished / "out" / "learn.json").read_bytes())
    result = masksparse("report", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "report.html" in result.stdout
    assert "<html" in (tmp_path / "report.html").read_text()


def test_doctor() -> None:
    result = masksparse("doctor", "--json")
    assert result.returncode == 0, result.stderr
    statuses = {status["backend"]: status for status in json.loads(result.stdout)}
    assert statuses["onnxruntime"]["available"]
    assert statuses["tensorrt"]["available"] or statuses["tensorrt"]["reason"]
