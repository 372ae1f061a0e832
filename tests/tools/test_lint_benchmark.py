from pathlib import Path

import numpy as np
import pytest

from masksparse_deploy.bake.lint import lint
from tools import lint_benchmark

KERNELS = {"conv": np.ones((8, 8, 3, 3), np.float32), "fc": np.ones((4, 8), np.float32)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_benchmark, "resnet50_kernels", lambda: KERNELS)


@pytest.mark.parametrize("precision", lint_benchmark.DTYPES)
def test_the_file_is_sparse(precision: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(lint_benchmark.model_of(KERNELS, lint_benchmark.DTYPES[precision]).SerializeToString())
    report = lint(path)
    assert [layer.violation_count for layer in report.layers] == [0, 0]
    assert [layer.density for layer in report.layers] == [0.5, 0.5]


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_benchmark, "_polygraphy", lambda data: set())
    monkeypatch.setattr(lint_benchmark.importlib.util, "find_spec", lambda name: object())
    assert lint_benchmark.main(["--runs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("608 weights in 2 layers, 2 conforming")
    assert [line[:28].strip() for line in lines[1:]] == ["file reading", "masksparse lint", "polygraphy inspect sparsity"]
    assert lines[-1].endswith("times as long")


def test_polygraphy_is_optional(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lint_benchmark.importlib.util, "find_spec", lambda name: None)
    assert lint_benchmark.main(["--runs", "1", "--precision", "bfloat16"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].split(maxsplit=3)[-1] == "not installed"


@pytest.mark.filterwarnings("ignore:overflow encountered in cast:RuntimeWarning")  # Polygraphy compares with a float64
def test_polygraphy_answers_for_the_same_weights() -> None:
    pytest.importorskip("polygraphy", reason="pip install polygraphy")
    model = lint_benchmark.model_of(KERNELS, np.float32)
    assert lint_benchmark._polygraphy(model.SerializeToString()) == {"conv", "fc"}
    model.graph.initializer[0].raw_data = KERNELS["conv"].tobytes()
    assert lint_benchmark._polygraphy(model.SerializeToString()) == {"fc"}
