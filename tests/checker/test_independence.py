"""The checker shares no code with what it checks: its imports are the standard library, NumPy, onnx and its own."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.architecture import imports
from tests.checker.cases import Case
from tests.requirements import REPOSITORY

CHECKER = REPOSITORY / "masksparse_deploy" / "checker"
OWN = "masksparse_deploy.checker"

# Nothing else of the package, and nothing it is made of, can be imported.
BLOCK = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        foreign = name.startswith("masksparse_deploy.") and not name.startswith("masksparse_deploy.checker")
        if foreign or name.partition(".")[0] in ("pydantic", "scipy", "onnxruntime", "torch", "click", "rich", "safetensors"):
            raise ImportError(name + " is blocked")
sys.meta_path.insert(0, Blocker())
"""


def foreign_imports(folder: Path) -> list[str]:
    """Imports below `folder` that are not allowed, as "file: module"."""
    return [
        f"{file.name}: {module}"
        for file in sorted(folder.rglob("*.py"))
        for _, module in imports(ast.parse(file.read_text(encoding="utf-8")))
        if not _is_allowed(module)
    ]


def _is_allowed(module: str) -> bool:
    if module == OWN or module.startswith(f"{OWN}."):
        return True
    return module.partition(".")[0] in {"numpy", "onnx", *sys.stdlib_module_names}


def test_it_imports_the_standard_library_numpy_and_onnx_only() -> None:
    assert foreign_imports(CHECKER) == []


@pytest.mark.parametrize(
    "line",
    [
        "from masksparse_deploy.core.files import canonical_json",
        "from masksparse_deploy.certify import operator_norm",
        "import masksparse_deploy.graph.reader as reader",
        "import pydantic",
        "def f():\n    from scipy import linalg",
        "import importlib\nimportlib.import_module('masksparse_deploy.certify.run')",
        "from . import norms",
    ],
)
def test_a_planted_import_is_caught(tmp_path: Path, line: str) -> None:
    (tmp_path / "planted.py").write_text(line + "\n")
    assert foreign_imports(tmp_path) != []


def test_it_runs_with_everything_else_blocked(case: Case) -> None:
    arguments = [str(case.certificate), "--dense", str(case.dense), "--sparse", str(case.sparse)]
    code = f"{BLOCK}\nfrom masksparse_deploy.checker.__main__ import main\nsys.exit(main({arguments!r}))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("the certificate is verified except what needs the images\n")


def test_the_blocker_blocks() -> None:
    code = f"{BLOCK}\nimport masksparse_deploy.certify.run"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert "masksparse_deploy.certify is blocked" in result.stderr
