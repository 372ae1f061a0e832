"""Reading models whose weights lie in other files, and refusing what one file cannot hold."""

from pathlib import Path

import onnx
import pytest

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.rewrite import model_file
from masksparse_deploy.rewrite.model_file import load_model, rewritten_bytes
from masksparse_deploy.rewrite.run import rewrite
from tests.rewrite.machine import FakeBackend, convolutions
from tests.rewrite.models import assert_same_function, residual_blocks

HALF = BlockPattern(n=4, rate=0.5)


def test_weights_in_other_files_are_brought_into_one(tmp_path: Path) -> None:
    path = tmp_path / "in" / "sparse.onnx"
    path.parent.mkdir()
    onnx.save(residual_blocks(HALF), path, save_as_external_data=True, location="weights.data", size_threshold=0)
    backend = FakeBackend(lambda model: 1e-3)
    report = rewrite(
        path,
        RewriteOptions(mode="always", rounds=10),
        EngineOptions(batch=1, threads=1),
        out=tmp_path / "out",
        backend=backend,
        clock=backend.clock,
    )
    assert [layer.form for layer in report.layers] == ["gathered"] * 3
    written = onnx.load(tmp_path / "out" / "rewritten.onnx", load_external_data=False)
    assert convolutions(written)["conv1"] == 4
    assert_same_function(onnx.load(path), written)


def test_the_file_says_that_it_was_rewritten() -> None:
    model = residual_blocks(HALF)
    model.metadata_props.add(key="masksparse.role", value="sparse")
    written = onnx.load_model_from_string(rewritten_bytes(model, Path("sparse.onnx")))
    assert {entry.key: entry.value for entry in written.metadata_props} == {"masksparse.role": "rewritten"}


def test_what_one_file_cannot_hold_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sparse.onnx"
    onnx.save(residual_blocks(HALF), path)
    monkeypatch.setattr(model_file, "_LARGEST_MODEL_BYTES", 1000)
    with pytest.raises(
        UsageError, match=r"are more than the 2 GB that one file holds; .* or leave the stage out with rewrite\.mode"
    ):
        rewritten_bytes(load_model(path), path)
