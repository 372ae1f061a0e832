"""Imports go one way; each rule is shown to catch a planted fault."""

from pathlib import Path

import pytest

from tests.architecture import ALLOWED, PACKAGE, violations
from tests.requirements import REPOSITORY


def test_the_package_keeps_to_the_rules() -> None:
    assert violations(REPOSITORY / PACKAGE) == []


def test_every_part_exists_and_no_other() -> None:
    parts = {entry.name for entry in (REPOSITORY / PACKAGE).iterdir() if (entry / "__init__.py").is_file()}
    assert parts == set(ALLOWED)


def test_no_part_is_allowed_a_cycle() -> None:
    order: list[str] = []
    while len(order) < len(ALLOWED):
        ready = [part for part in ALLOWED if part not in order and ALLOWED[part] <= set(order)]
        assert ready, "the allowed imports form a cycle"
        order += ready


@pytest.mark.parametrize(
    ("file", "line", "expected"),
    [
        ("core/bad.py", "import masksparse_deploy.learn", "core must not import learn"),
        ("learn/bad.py", "from masksparse_deploy.bake.run import bake", "learn must not import bake"),
        ("learn/bad.py", "from masksparse_deploy import bake", "learn must not import bake"),
        ("engine/bad.py", "def f():\n    from masksparse_deploy.validate import run", "engine must not import validate"),
        ("certify/bad.py", "from masksparse_deploy.engine.select import get_backend", "certify must not import engine"),
        ("report/bad.py", "from masksparse_deploy.pipeline.run import run_chain", "report must not import pipeline"),
        ("pipeline/bad.py", "from masksparse_deploy.cli.main import run", "pipeline must not import cli"),
        ("profiling/bad.py", "def f():\n    import torch", "profiling must work without torch"),
        ("validate/bad.py", "from torch import nn", "validate must work without torch"),
        ("core/bad.py", 'import importlib\nimportlib.import_module("masksparse_deploy.cli")', "core must not import cli"),
        ("graph/bad.py", 'require("torch", needed_for="nothing")', "graph must work without torch"),
        ("bake/bad.py", "from .apply import f", "relative import .apply"),
        ("learn/bad.py", "import tests.models.tiny_cnn", "the package must not import tests"),
        ("misc/bad.py", "import masksparse_deploy.core", "misc is not a known part of the package"),
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, file: str, line: str, expected: str) -> None:
    path = tmp_path / file
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert any(expected in found for found in violations(tmp_path)), violations(tmp_path)


def test_a_clean_file_is_not_caught(tmp_path: Path) -> None:
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "good.py").write_text("import numpy\nfrom masksparse_deploy.core.errors import UsageError\n")
    assert violations(tmp_path) == []
