"""What takes the command line: refit, validation of the digits sample, and the tests that need a GPU."""

import contextlib
import io
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from masksparse_deploy.cli.main import run as command_line
from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.core.files import atomic_output, make_folder
from masksparse_deploy.core.optional import is_installed
from tools.gpu_campaign_networks import write_pair
from tools.gpu_campaign_record import Case, Machine

__all__ = ["chain_cases", "gpu_test_case", "prepare", "refit_cases"]

REPOSITORY = Path(__file__).resolve().parent.parent
TEST_IMAGES = "test.npz"
_REFITTED = "resnet18"
_BATCH = 16
# They may begin when a piece is 300 s old, and a piece is to end within nine minutes.
_LONGEST_TESTS_S = 230
# All files that hold such tests, and those of them that want PyTorch, which a machine that deploys need not have.
_GPU_TESTS = ("tests/engine/test_tensorrt_gpu.py", "tests/engine/test_device_times_gpu.py")
_PYTORCH_TESTS = ("tests/pipeline/test_norms.py", "tests/learn/dynamic/test_semi_structured.py")
# Nor need it have the plugins that the project's own settings of pytest speak of, which would end it.
_WITHOUT_PLUGINS = ("-o", "addopts=", "-W", "ignore::pytest.PytestConfigWarning")
# What validation needs of a chain, besides engines.
_KEPT = (
    "dense.onnx",
    "sparse.onnx",
    "dense.fp32.onnx",
    "sparse.fp32.onnx",
    "bake.json",
    "probe.safetensors",
    "certificate.json",
)


def prepare(folder: Path, precisions: Iterable[str]) -> None:
    """The digits sample up to its certificate, on a machine with PyTorch: files and images that travel, about 5 MB.

    Raises:
        MachineError: the chain does not run here.
    """
    sample = REPOSITORY / "samples" / "digits"
    for precision in precisions:
        target = make_folder(folder / f"digits-{precision}")
        chain = target / "chain"
        _command(["deploy", str(sample / f"{precision}.yaml"), "--out", str(chain), "--until", "certify"])
        for name in _KEPT:
            shutil.copyfile(chain / name, target / name)
        shutil.rmtree(chain)
        images, labels = _test_images(sample)
        with atomic_output(target / TEST_IMAGES) as partial_path, partial_path.open("wb") as stream:
            np.savez(stream, images=images, labels=labels)


def _test_images(sample: Path) -> tuple[Any, Any]:
    from masksparse_deploy.core.samples import read_samples

    samples = read_samples("data:test", folder=sample)
    return samples.images, samples.known_labels


def chain_cases(prepared: Path) -> Iterator[Case]:
    """Build, profile and validate what `prepare` wrote; raises UsageError where the folder holds nothing of it."""
    folders = sorted(path.parent for path in prepared.glob(f"*/{TEST_IMAGES}"))
    if not folders:
        raise UsageError(f"{prepared} holds no files of --prepare; run it where PyTorch is, and bring the folder here")
    for folder in folders:
        yield Case(
            name=f"validate {folder.name}",
            piece="validation",
            files=partial(_prepared_files, folder),
            run=partial(_validate, folder),
        )


def _prepared_files(source: Path, folder: Path) -> Sequence[Path]:
    return source / "dense.onnx", source / "sparse.onnx"


def _validate(source: Path, machine: Machine) -> dict[str, Any]:
    out = make_folder(machine.work / source.name)
    for role in ("dense", "sparse"):
        _command(["build", "--onnx", str(source / f"{role}.onnx"), "--out", str(out), *_engine_words(machine)])
    engines = ["--dense-engine", str(out / "dense.engine.json"), "--sparse-engine", str(out / "sparse.engine.json")]
    files = {
        "--dense-onnx": "dense.onnx",
        "--sparse-onnx": "sparse.onnx",
        "--dense-fp32": "dense.fp32.onnx",
        "--sparse-fp32": "sparse.fp32.onnx",
        "--bake-report": "bake.json",
        "--probe": "probe.safetensors",
        "--certificate": "certificate.json",
        "--data": TEST_IMAGES,
    }
    words = [word for option, name in files.items() for word in (option, str(source / name))]
    report = _command(
        ["validate", *engines, *words, "--batch", str(_BATCH), "--out", str(out / "validation.json")], accepted=(0, 1)
    )
    checks = {check["name"]: check["verdict"] for check in report["checks"]}
    poor = [f"{name}: {verdict}" for name, verdict in checks.items() if verdict != "pass"]
    return {
        "verdict": report["verdict"],
        "checks": report["checks"],
        "outcome": "; ".join([f"{report['verdict']}, {len(checks)} checks", *poor]),
    }


def refit_cases(precisions: Iterable[str]) -> Iterator[Case]:
    """New weights in a sparse engine, without building it again."""
    for precision in precisions:
        yield Case(
            name=f"refit {_REFITTED} {precision}",
            piece="refit",
            files=partial(_refit_files, precision),
            run=partial(_refit, precision),
        )


def _refit_files(precision: str, folder: Path) -> Sequence[Path]:
    _, old = write_pair(_REFITTED, precision, folder / "old")
    new, _ = write_pair(_REFITTED, precision, folder / "new", seed=1)
    return old, new


def _refit(precision: str, machine: Machine) -> dict[str, Any]:
    folder = machine.work / f"refit-{precision}"
    old, new = _refit_files(precision, folder)
    _command(["build", "--onnx", str(old), "--out", str(folder), "--refit", *_engine_words(machine)])
    words = ["--engine", str(folder / "sparse.engine.json"), "--source", str(old), "--onnx", str(new)]
    report = _command(["refit", *words, "--out", str(folder / "refitted")])
    return {
        "report": report,
        "outcome": f"{report['seconds']:.2f} s, error {report['relative_error']:.2g} of at most {report['tolerance']:.2g}, "
        f"{'REBUILT' if report['rebuilt'] else 'not rebuilt'}",
    }


def gpu_test_case() -> Case:
    """The project's own tests that need a GPU; without pytest the record says that they did not run."""
    return Case(name="tests that need a GPU", piece="tests", files=lambda folder: (), run=_run_tests)


def _run_tests(machine: Machine) -> dict[str, Any]:
    if not is_installed("pytest"):
        return {"outcome": "not run: pytest is not here"}
    # pytest cuts the reasons of failures to the width of the terminal
    environment = {**os.environ, "MASKSPARSE_REQUIRE_GPU": "1", "COLUMNS": "500"}
    files = (*_GPU_TESTS, *(_PYTORCH_TESTS if is_installed("torch") else ()))
    command = [sys.executable, "-m", "pytest", "-q", "-rfE", "-m", "gpu or trt", *_WITHOUT_PLUGINS, *files]
    try:
        result = subprocess.run(
            command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False, timeout=_LONGEST_TESTS_S
        )
    except subprocess.TimeoutExpired as error:
        raise MachineError(f"pytest did not end within {_LONGEST_TESTS_S} s: run {' '.join(command[1:])} by itself") from error
    lines = result.stdout.strip().splitlines() or ["no output"]
    if result.returncode != 0:
        # with each failure's line, as nobody can ask the machine again
        told = [line for line in lines[:-1] if line.startswith(("FAILED", "ERROR"))] or result.stderr.splitlines()[-1:]
        raise MachineError(f"pytest exited with {result.returncode}: {'; '.join([lines[-1], *told])}")
    return {"outcome": lines[-1]}


def _engine_words(machine: Machine) -> list[str]:
    options = machine.engine
    words = ["--backend", machine.backend.name, "--batch", str(_BATCH), "--workspace-mib", str(options.workspace_mib)]
    words += [] if options.timing_cache is None else ["--timing-cache", options.timing_cache]
    return [*words, *(word for source in options.tactic_sources or () for word in ("--tactic-sources", source))]


def _command(words: Sequence[str], accepted: tuple[int, ...] = (0,)) -> dict[str, Any]:
    """Run a command of `masksparse` in this process; what it prints as JSON. Raises MachineError with its message."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = command_line([*words, "--json"])
    if code not in accepted:
        last_line = (err.getvalue().strip().splitlines() or ["no message"])[-1]
        raise MachineError(f"masksparse {words[0]} ended with exit code {code}: {last_line}")
    content: dict[str, Any] = json.loads(out.getvalue() or "{}")
    return content
