"""The verbs sweep and profile on the files of a tiny model, in this process."""

import json
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

from masksparse_deploy.cli.main import run
from tests.models.make_onnx import residual_pair
from tests.test_docs_on_digits import commands_of

QUICK = ["--rounds", "10", "--inferences-per-round", "1", "--warmup", "1", "--threads", "1"]


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    words = []
    for name, model in zip(("dense", "sparse"), residual_pair(), strict=True):
        onnx.save(model, tmp_path / f"{name}.onnx")
        words += [f"--{name}", str(tmp_path / f"{name}.onnx")]
    np.savez(tmp_path / "test.npz", images=np.zeros((4, 3, 8, 8), np.float32), labels=np.zeros(4, np.int64))
    return [*words, "--data", str(tmp_path / "test.npz"), "--out", str(tmp_path / "sweep.json")]


def test_a_sweep_is_written_drawn_and_taken_up_again(
    tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plot = ["--plot", str(tmp_path / "sweep.html")]
    code = run(["sweep", *files, *QUICK, "--batches", "1,2", *plot])
    shown = capsys.readouterr().out
    assert code == (1 if "invalid" in shown else 0)  # other load may spoil a point, which then says so
    assert "onnxruntime on" in shown
    assert (tmp_path / "sweep.html").is_file()
    before = json.loads((tmp_path / "sweep.json").read_text(encoding="utf-8"))["points"]
    run(["sweep", *files, *QUICK, "--batches", "4", "--json"])
    points = json.loads(capsys.readouterr().out)["points"]
    assert [point["batch"] for point in points] == [1, 2, 4]
    assert points[:2] == before


def test_the_documented_sweep_runs(tmp_path: Path, files: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """On other files of the same names."""
    (tmp_path / "out" / "digits").mkdir(parents=True)
    for name in ("dense.onnx", "sparse.onnx"):
        (tmp_path / name).rename(tmp_path / "out" / "digits" / name)
    monkeypatch.chdir(tmp_path)
    (line,) = (line for line in commands_of("profile.md") if line.startswith("masksparse sweep"))
    assert run([*shlex.split(line)[1:], *QUICK]) in (0, 1)  # 1: other load spoilt a point
    points = json.loads(Path("out/digits/sweep.json").read_text(encoding="utf-8"))["points"]
    assert [point["batch"] for point in points] == [1, 8, 64]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--batches", "1;8"], "--batches is '1;8': write positive numbers with commas between them, as 1,8,32"),
        (["--batches", "0"], "--batches is '0'"),
        (["--batches", "1", "--images", "224"], "--images is '224': write sizes as HEIGHTxWIDTH with commas"),
    ],
)
def test_what_cannot_be_swept_over(
    files: list[str], options: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["sweep", *files, *options]) == 2
    assert words in capsys.readouterr().err


def test_one_onnx_file_alone_is_refused(files: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["profile", *files, "--sparse-onnx", files[3]]) == 2
    assert (
        "--sparse-onnx was given without --dense-onnx: give both files for several builds, or none" in capsys.readouterr().err
    )
