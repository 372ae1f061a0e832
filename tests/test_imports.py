"""What an import costs and needs, seen in a fresh process."""

import subprocess
import sys

import pytest

HEAVY = ("torch", "onnx", "onnxruntime", "tensorrt", "scipy", "numpy", "pydantic", "plotly")

BLOCK_TORCH = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("torch is blocked")
sys.meta_path.insert(0, Blocker())
"""


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("arguments", [[], ["--help"], ["--version"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom masksparse_deploy.cli.main import run\n"
        f"run({arguments!r})\n"
        f"print('LOADED', [name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    result = run_python(code)
    assert "LOADED []" in result.stderr, result.stderr


@pytest.mark.parametrize("part", ["core", "graph", "engine", "profiling", "certify", "checker", "validate", "report"])
def test_the_part_imports_without_torch(part: str) -> None:
    code = BLOCK_TORCH + (
        "import importlib, pkgutil\n"
        f"import masksparse_deploy.{part} as part\n"
        "for module in pkgutil.walk_packages(part.__path__, part.__name__ + '.'):\n"
        "    importlib.import_module(module.name)\n"
        "print('imported')"
    )
    result = run_python(code)
    assert result.stdout.strip() == "imported", result.stderr


@pytest.mark.parametrize(
    "verb", ["build", "profile", "explain", "validate", "certify", "lint", "preflight", "doctor", "report"]
)
def test_verbs_of_a_deployment_machine_start_without_torch(verb: str) -> None:
    result = run_python(
        BLOCK_TORCH + f"from masksparse_deploy.cli.main import run\nraise SystemExit(run(['{verb}', '--help']))"
    )
    assert result.returncode == 0, result.stderr
    assert f"masksparse {verb}" in result.stdout


def test_the_blocker_blocks() -> None:
    result = run_python(BLOCK_TORCH + "import masksparse_deploy.learn.run")
    assert "torch is blocked" in result.stderr
