"""The verb's exit codes and what it prints."""

import json
from pathlib import Path
from typing import Any

import onnx
import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.cli.render_preflight import preflight_table
from masksparse_deploy.core.artifacts.preflight import ParserError, PreflightLayer, PreflightReport
from masksparse_deploy.engine import preflight as module
from tests.engine.preflight_models import sparse_model, with_custom_operators
from tests.requirements import requires


@requires(tensorrt_rtx=True)
def test_a_file_that_holds_what_it_claims(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sparse.onnx"
    onnx.save(sparse_model(), path)
    assert run(["preflight", str(path)]) == 0
    told = capsys.readouterr().out
    assert "4 of 4 claims of sparsity hold as parsed, 0 differ from the file." in told
    assert "This checks parsing, not" in told


@requires(tensorrt_rtx=True)
def test_an_operator_that_the_parser_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "custom.onnx"
    onnx.save(with_custom_operators(), path)
    assert run(["preflight", str(path), "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["kind"] == "preflight report"
    assert [error["node"] for error in report["errors"]] == ["fancy", "fancier"]


def test_a_missing_file_a_missing_package_and_a_damaged_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "model.onnx"
    assert run(["preflight", str(path)]) == 2
    assert "does not exist" in capsys.readouterr().err
    path.write_bytes(b"no model")
    monkeypatch.setattr(module, "is_installed", lambda name: True)
    assert run(["preflight", str(path)]) == 4
    assert "damaged" in capsys.readouterr().err
    monkeypatch.setattr(module, "is_installed", lambda name: False)
    monkeypatch.setitem(__import__("sys").modules, "tensorrt_rtx", None)  # None makes its import fail
    assert run(["preflight", str(path)]) == 3
    assert "pip install 'masksparse-deploy[preflight]'" in capsys.readouterr().err


def test_every_state_of_a_layer_has_its_words() -> None:
    report = PreflightReport(
        file_sha256="0" * 64,
        versions={"tensorrt-rtx": "1.7"},
        parsed=True,
        built=False,
        errors=(ParserError(node="", op="", message="[no] kernels"),),
        warnings=("an int64 was narrowed",),
        layers=(
            row("kept", conforming=True),
            row("lost", conforming=False, violation_count=3),
            row("hidden", conforming=None, group_count=0, agrees=False),
            row("plain", conforming=False, claimed=False, violation_count=64),
            row("stem", conforming=False, claimed=False, group_count=0),
        ),
        ok=False,
    )
    head, refused, warning, table, summary = preflight_table(report)
    assert head == "[green]parsed[/], [red]not built[/]   tensorrt-rtx 1.7"
    assert refused == "[red]refused[/] \\[no] kernels"
    assert warning == "[yellow]warning[/] an int64 was narrowed"
    assert not isinstance(table, str)
    assert list(table.columns[4].cells) == [
        "[green]claimed 2:4[/]",
        "[red]claimed, but 3 of 64 groups keep more than 2:4[/]",
        "[red]claimed 2:4, not shown[/]",
        "dense",
        "dense",
    ]
    assert str(summary).startswith("5 layers with weights: 1 of 3 claims of sparsity hold as parsed, 1 differ from the file.")


def row(node: str, **changes: Any) -> PreflightLayer:
    values: dict[str, Any] = {
        "kind": "convolution",
        "shape": (16, 16, 1, 1),
        "dtype": "float32",
        "pattern": "2:4",
        "claimed": True,
        "group_count": 64,
        "violation_count": 0,
        "conforming": True,
        "agrees": True,
        "detail": "",
    }
    return PreflightLayer(node=node, **{**values, **changes})
