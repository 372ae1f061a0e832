"""The verb's exit codes and what it prints."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.cli.render_forecast import forecast_table
from tests.forecast.machine import network
from tests.report.test_forecast import make_forecast


def test_the_table_and_the_whole() -> None:
    table, network_line, estimate, trial, reason, remark = forecast_table(make_forecast())
    assert not isinstance(table, str)
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    assert rows == [
        ("3x3, 32 to 32 channels, 8x8, fp16", "2", "0.5000", "0.4000", "+0.1000", "sm90_xmma_sparse"),
        ("3x3 stride 2, 32 to 32 channels, 8x8, fp16", "1", "-", "-", "-", "[red]not timed[/]: refused"),
    ]
    assert str(network_line).startswith("network as it is 1.900 ms   batch 64")
    assert estimate == "estimate from the layers   1.40x [1.39, 1.41]   an estimate: layers also act on one another"
    assert trial == "trial with half of the weights cut   1.30x [1.29, 1.31]   measured, accuracy disregarded"
    assert (reason, remark) == ("[green]worth it: so it is[/]", "[yellow]note[/] a remark")


def test_a_runtime_without_sparse_kernels_is_answered_with_no(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(network(), tmp_path / "net.onnx")
    line = ["forecast", "--onnx", str(tmp_path / "net.onnx"), "--batch", "2", "--out", str(tmp_path / "out")]
    assert run(line) == 1
    assert "don't bother: this runtime has no 2:4 kernels" in " ".join(capsys.readouterr().out.split())
    assert run([*line, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["worthwhile"] is False
    onnx.save(network(np.float32), tmp_path / "net.onnx")
    assert run([*line, "--precision", "int8"]) == 1


def test_bad_input_has_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert run(["forecast", *out]) == 2
    assert "give the model either as --factory and --weights, or as --onnx" in capsys.readouterr().err
    assert run(["forecast", "--onnx", str(tmp_path / "none.onnx"), *out]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert run(["forecast", "--onnx", "net.onnx", "--image", "3x8x8", *out]) == 2
    assert "--image: an ONNX file says itself what images it takes" in capsys.readouterr().err
    assert run(["forecast", "--onnx", "net.onnx", "--image", "8x8", *out]) == 2
    assert "write the image as CHANNELSxHEIGHTxWIDTH, as 3x224x224" in capsys.readouterr().err
    assert run(["forecast", "--onnx", "net.onnx", "--precision", "bf16", *out]) == 2
    assert "'bf16' is not one of 'fp16', 'int8'" in capsys.readouterr().err
    (tmp_path / "damaged.onnx").write_bytes(b"\x08\x01")
    assert run(["forecast", "--onnx", str(tmp_path / "damaged.onnx"), *out]) == 4
