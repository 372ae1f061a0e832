"""The verb's exit codes and what it prints."""

import json
from pathlib import Path

import onnx
import pytest

from masksparse_deploy.cli.main import run
from masksparse_deploy.cli.render_rewrite import rewrite_lines, rewrite_table
from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.rewriting import LayerRewrite, RewriteReport, TimedForm
from masksparse_deploy.core.blocks import BlockPattern
from tests.models.make_onnx import residual_pair
from tests.rewrite.models import residual_blocks

SPEEDUP = Interval(low=1.4, high=1.6, confidence=0.95)
REPORT = RewriteReport(
    sparse_sha256="0" * 64,
    rewritten_sha256="1" * 64,
    backend="onnxruntime",
    device="a CPU",
    versions={},
    batch=1,
    threads=2,
    channel_block=16,
    layers=(
        LayerRewrite(
            node="conv1",
            pattern="1x32@0.5",
            form="gathered",
            reason="faster: 1.50x alone as gathered",
            density=0.5,
            computed_density=0.5,
            ideal=2.0,
            times=(
                TimedForm(form="dense", median_ms=3.0, from_cache=False),
                TimedForm(form="gathered", variant="32 channels a group", median_ms=2.5, from_cache=False),
                TimedForm(form="gathered", median_ms=2.0, from_cache=False),
            ),
            speedup=1.5,
            interval=SPEEDUP,
        ),
    ),
    speedup=1.5,
    interval=SPEEDUP,
    remarks=("a [remark]",),
)


def test_the_table_and_the_whole() -> None:
    table, head, remark = rewrite_table(REPORT)
    assert not isinstance(table, str)
    row = [next(iter(column.cells)) for column in table.columns]
    assert row == [
        "conv1",
        "1x32@0.5",
        "[green]gathered[/]",
        "50%",
        "3.000",
        "2.000",
        "1.50x",
        "2.00x",
        "faster: 1.50x alone as gathered",
    ]
    assert head == (
        "rewritten.onnx   1 of 1 layers rewritten   speedup 1.50x [1.40, 1.60] over the sparse file   batch 1, 2 threads, a CPU"
    )
    assert remark == r"[yellow]note[/] a \[remark]"


def test_a_report_without_a_file_says_what_to_deploy() -> None:
    report = REPORT.model_copy(update={"rewritten_sha256": None, "speedup": None, "interval": None, "remarks": ()})
    told = "no rewritten.onnx: engines are built from the sparse file"
    assert rewrite_lines(report) == [f"no layer gets faster in this network, 1 tried; {told}"]
    untried = report.model_copy(update={"layers": (report.layers[0].model_copy(update={"times": ()}),)})
    assert rewrite_lines(untried) == [told]


def test_a_file_without_blocks_is_no_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sparse.onnx"
    onnx.save(residual_pair()[1], path)
    assert run(["rewrite", str(path), "--out", str(tmp_path / "out")]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert told == "no rewritten.onnx note the file has no layer with 1xN blocks or masked positions: nothing to rewrite"
    assert not (tmp_path / "out" / "rewritten.onnx").exists()


def test_all_layers_are_rewritten_if_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "sparse.onnx"
    onnx.save(residual_blocks(BlockPattern(n=4, rate=0.5)), path)
    line = ["rewrite", str(path), "--mode", "always", "--rounds", "10", "--batch", "1", "--threads", "1"]
    assert run([*line, "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert [layer["form"] for layer in report["layers"]] == ["gathered"] * 3
    assert run(["lint", str(tmp_path / "out" / "rewritten.onnx")]) == 0


def test_bad_input_has_its_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert run(["rewrite", str(tmp_path / "none.onnx"), *out]) == 2
    assert "does not exist" in capsys.readouterr().err
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(b"\x08\x01")
    assert run(["rewrite", str(damaged), *out]) == 4
    assert run(["rewrite", str(damaged), *out, "--rounds", "3"]) == 2
    assert "--rounds: input should be greater than or equal to 10, not 3" in capsys.readouterr().err
