"""The commands of docs/refit.md, run as they stand there, and what the verb says without a GPU."""

import json
import shlex
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from masksparse_deploy.cli.main import run
from tests.project import masksparse
from tests.requirements import REPOSITORY
from tests.test_docs import commands

PAGE = REPOSITORY / "docs" / "refit.md"


def trained_on(source: Path, target: Path) -> None:
    """The same network a little later: no weight is where it was, and none is zero."""
    model = onnx.load(source)
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            moved = array + generator.normal(0, 0.01, array.shape).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(moved, tensor.name))
    target.parent.mkdir()
    onnx.save(model, target)


def test_the_commands_of_the_page(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "digits").mkdir()
    shutil.copy(finished / "out" / "sparse.onnx", tmp_path / "digits" / "sparse.onnx")
    trained_on(finished / "out" / "sparse.onnx", tmp_path / "update" / "sparse.onnx")
    lines = commands(PAGE.read_text(encoding="utf-8"))
    assert [line.split()[1] for line in lines] == ["build", "refit"]
    for line in lines:
        words = [word.replace("out/", f"{tmp_path}/") for word in shlex.split(line)[1:]]
        result = masksparse(*words)
        assert result.returncode == 0, result.stderr
    assert "3 masked layers; " in result.stdout
    assert "of their new weights were set to zero" in result.stdout
    out = tmp_path / "digits" / "refit"
    report = json.loads((out / "refitted.refit.json").read_text())
    assert report["relative_error"] <= report["tolerance"] < report["relative_change"]
    # an engine of a backend that does not work here
    metadata = json.loads((tmp_path / "digits" / "sparse.engine.json").read_text())
    (tmp_path / "digits" / "gpu.engine.json").write_text(json.dumps({**metadata, "backend": "onnxruntime-cuda"}))
    words = [word.replace("sparse.engine.json", "gpu.engine.json") for word in words]
    assert run(words) == 3
    assert "the backend onnxruntime-cuda does not work here" in capsys.readouterr().err
