from collections.abc import Callable
from pathlib import Path

import pytest

from masksparse_deploy.core.config import DataOptions, DeployConfig, EngineOptions, ModelOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.pipeline.job import Job, source_digest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model.py").write_text("from blocks import block\n\ndef net():\n    return block()\n")
    (tmp_path / "blocks.py").write_text("def block():\n    return 1\n")
    (tmp_path / "train.npz").write_bytes(b"arrays")
    (tmp_path / "images" / "cat").mkdir(parents=True)
    (tmp_path / "images" / "cat" / "0.png").write_bytes(b"cat")
    return tmp_path


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("model:net", lambda folder: (folder / "model.py").write_text("def net():\n    return 2\n")),
    ("model:net", lambda folder: (folder / "blocks.py").write_text("def block():\n    return 2\n")),
    ("train.npz", lambda folder: (folder / "train.npz").write_bytes(b"arrayz")),
    ("images", lambda folder: (folder / "images" / "cat" / "0.png").write_bytes(b"dog")),
    ("images", lambda folder: (folder / "images" / "cat").rename(folder / "images" / "dog")),
]


@pytest.mark.parametrize(("source", "change"), CHANGES)
def test_a_change_of_the_source_changes_its_digest(folder: Path, source: str, change: Callable[[Path], object]) -> None:
    before = source_digest(source, folder)
    assert source_digest(source, folder) == before
    change(folder)
    assert source_digest(source, folder) != before


@pytest.mark.parametrize(("source", "words"), [("none.npz", "does not exist"), ("nowhere:net", "no module 'nowhere'")])
def test_a_source_that_is_not_there(folder: Path, source: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        source_digest(source, folder)


@pytest.mark.parametrize(
    ("given", "used"), [(None, None), ("none", "none"), ("times", "{folder}/times"), ("/shared/times", "/shared/times")]
)
def test_a_timing_cache_starts_at_the_configurations_folder(tmp_path: Path, given: str | None, used: str | None) -> None:
    config = DeployConfig(
        model=ModelOptions(factory="model:net", weights="w.safetensors"),
        data=DataOptions(train="train.npz", test="test.npz"),
        engine=EngineOptions(batch=3, timing_cache=given),
        out="out",
    )
    job = Job(config=config, folder=tmp_path, out=tmp_path / "out", command="", config_text="")
    assert job.engine.timing_cache == (used and used.format(folder=tmp_path))
    assert job.engine.batch == 3
