"""The verb's table, its exit codes, and the stage that writes the same."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.cli.main import run
from tests.engine.sparse_models import DENSE_SINGLE, SPARSE_HALF, engine_layer, make_engine, make_model, read

NAMED = (
    "(Sparsity) Layers eligible for sparse math: {0}\n(Sparsity) TRT inference plan picked sparse implementation for layers:\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An FP16 file and two engines of it, as TensorRT would leave them."""
    model = make_model()
    onnx.save(model, tmp_path / "sparse.onnx")
    graph, _ = read(model)
    engine = make_engine(graph, engine_layer("a", SPARSE_HALF), build_log="sparse.build.log")
    engine.write(tmp_path / "sparse.engine.json")
    make_engine(graph, engine_layer("a", DENSE_SINGLE)).write(tmp_path / "dense.engine.json")
    (tmp_path / "sparse.build.log").write_text(NAMED.format("b + b.relu"))
    return tmp_path


def explain(folder: Path, *more: str) -> int:
    return run(["explain", "--onnx", str(folder / "sparse.onnx"), "--engine", str(folder / "sparse.engine.json"), *more])


def test_the_table(folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    assert explain(folder, "--dense", str(folder / "dense.engine.json")) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "why not sparse   tensorrt 10.16.1, NVIDIA A100, sm_80, FP16, batch 64, builder's log without times"
    )
    rows = {line.split()[0]: " ".join(line.split()) for line in lines[2:7]}
    assert rows["a"] == f"a sparse - fp16, dense fp32 {SPARSE_HALF}"
    assert rows["b"].startswith("b dense was faster - fp32 the builder found its weights eligible and chose a dense tactic")
    assert rows["b"].endswith("which sums over nine times as much (a guess)")
    assert "a group convolution (8 groups)" in rows["depthwise"]
    assert lines[7] == "5 layers with weights: 1 sparse, 1 dense was faster, 3 not eligible"
    assert lines[8].startswith("note a: the sparse tactic adds up in FP16")


def test_json_and_a_file(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(folder, "--json", "--out", str(folder / "why.json")) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((folder / "why.json").read_text())
    assert printed["kind"] == "sparse tactics report"
    assert {layer["node"]: layer["status"] for layer in printed["layers"]}["b"] == "dense was faster"


def test_a_log_that_was_lost_is_said(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sparse.build.log").unlink()
    assert explain(folder) == 0
    assert "no builder's log" in capsys.readouterr().out


def test_a_contradiction_is_the_answer_no(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sparse.build.log").write_text(NAMED.format("Conv_0"))
    assert explain(folder) == 1
    assert "contradiction: the builder's log names 1 layers that the file does not have (Conv_0)" in capsys.readouterr().out


def test_another_file_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(make_model(np.float32), folder / "sparse.onnx")
    assert explain(folder) == 4
    assert "the engine was built from another file" in capsys.readouterr().err


def test_a_missing_engine_is_a_usage_error(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "sparse.engine.json").unlink()
    assert explain(folder) == 2
    assert "sparse.engine.json does not exist" in capsys.readouterr().err


def test_onnx_runtime_says_that_it_has_no_such_kernels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    onnx.save(make_model(np.float32), tmp_path / "sparse.onnx")
    assert run(["build", "--onnx", str(tmp_path / "sparse.onnx"), "--out", str(tmp_path)]) == 0
    capsys.readouterr()
    assert explain(tmp_path) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "this runtime has no 2:4 kernels: it multiplies the zeros too; 2 of 5 layers would be eligible" in out
