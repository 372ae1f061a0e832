from pathlib import Path

import pytest

from tests.project import make_project, masksparse


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a project whose chain has run once, for tests that only read it."""
    config = make_project(tmp_path_factory.mktemp("project"), mask={"method": "magnitude"})
    result = masksparse("deploy", config)
    assert result.returncode == 0, result.stderr + result.stdout
    return config.parent


@pytest.fixture(autouse=True)
def wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables as wide as they like, whatever the tests run in."""
    monkeypatch.setenv("COLUMNS", "200")
