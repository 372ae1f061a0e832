"""Everything to record on a machine with an NVIDIA GPU, as one command.

    python tools/record_gpu.py --dense out/digits/dense.onnx --sparse out/digits/sparse.onnx

says what works here, runs the tests that need a GPU, builds both engines with TensorRT, records what the engine inspector
says to tests/golden/, times the pair, and writes docs/measurements/tensorrt-<version>-<GPU>.json and .md with device,
versions, command and everything that failed. Exit code 0 if every step worked, 1 if one failed, 3 without a GPU or TensorRT.
"""

import argparse
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import canonical_json, write_atomic
from masksparse_deploy.engine.plans import metadata_path
from masksparse_deploy.engine.select import all_statuses
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from masksparse_deploy.profiling.compare import profile_pair

__all__ = ["main"]

REPOSITORY = Path(__file__).resolve().parent.parent
NAMES = ("dense", "sparse")
MACHINE_LACKS_SOMETHING = 3


@dataclass
class Recording:
    """What has been recorded so far; `steps` holds (name, outcome) in order, `failures` those that did not work."""

    record: dict[str, Any]
    steps: list[tuple[str, str]] = field(default_factory=list)
    failures: dict[str, str] = field(default_factory=dict)

    def attempt(self, name: str, step: Callable[[], str]) -> None:
        """Run one step and note its outcome; a failure is recorded and the next step still runs."""
        try:
            outcome = step()
        except Exception as error:  # whatever goes wrong on a machine seen once is what this tool is to write down
            outcome = f"FAILED: {type(error).__name__}: {error}"
            self.failures[name] = outcome
        self.steps.append((name, outcome))
        print(f"{name}: {outcome}", file=sys.stderr)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the recording; returns the exit code."""
    options = _parse(arguments)
    backend = TensorRTBackend()
    status = backend.status()
    if not status.available or status.device is None:
        print(f"record_gpu: {status.reason}", file=sys.stderr)
        return MACHINE_LACKS_SOMETHING
    version = status.versions.get("tensorrt", "unknown")
    recording = Recording(
        {
            "command": shlex.join(["python", "tools/record_gpu.py", *(sys.argv[1:] if arguments is None else arguments)]),
            "python": sys.version.split()[0],
            "statuses": [entry.model_dump(mode="json") for entry in all_statuses()],
        }
    )
    if not options.skip_tests:
        recording.attempt("tests that need a GPU", _run_tests)
    engine_options = EngineOptions(backend="tensorrt", batch=options.batch)
    for name, path in zip(NAMES, (options.dense, options.sparse), strict=True):
        recording.attempt(f"build {name}", partial(_build, recording, backend, path, name, engine_options, options.work))
        target = options.golden / f"inspector-{version}-{name}.json"
        recording.attempt(f"record inspector {name}", partial(_record_inspector, recording, options.work, name, target))
    profile_options = ProfileOptions(rounds=options.rounds)
    recording.attempt("profile", partial(_profile, recording, options.dense, options.work, engine_options, profile_options))
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"tensorrt-{version}-{status.device.name}")
    recording.record |= {"steps": dict(recording.steps), "failures": recording.failures}
    write_atomic(options.measurements / f"{stem}.json", canonical_json(recording.record))
    write_atomic(options.measurements / f"{stem}.md", _summary(recording, status.device.name, version).encode())
    print(options.measurements / f"{stem}.md")
    return 1 if recording.failures else 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dense", type=Path, required=True, help="the dense twin's ONNX file")
    parser.add_argument("--sparse", type=Path, required=True, help="the sparse ONNX file")
    parser.add_argument("--batch", type=int, default=64, help="images an inference (default: 64)")
    parser.add_argument("--rounds", type=int, default=100, help="timing rounds (default: 100)")
    parser.add_argument("--work", type=Path, default=Path("out/gpu"), help="where the engines are written (default: out/gpu)")
    parser.add_argument("--golden", type=Path, default=REPOSITORY / "tests" / "golden", help="where inspector JSON goes")
    parser.add_argument(
        "--measurements", type=Path, default=REPOSITORY / "docs" / "measurements", help="where the record and its summary go"
    )
    parser.add_argument("--skip-tests", action="store_true", help="do not run the tests that need a GPU")
    return parser.parse_args(arguments)


def _run_tests() -> str:
    environment = {**os.environ, "MASKSPARSE_REQUIRE_GPU": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu or trt"]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    last_line = (result.stdout.strip().splitlines() or ["no output"])[-1]
    if result.returncode != 0:
        raise MachineError(f"pytest exited with {result.returncode}: {last_line}")
    return last_line


def _build(recording: Recording, backend: TensorRTBackend, path: Path, name: str, options: EngineOptions, folder: Path) -> str:
    artifact = backend.build(path, folder, options, name=name)
    recording.record[name] = artifact.model_dump(mode="json")
    return f"{artifact.precision}, {artifact.sparse_kernels}"


def _record_inspector(recording: Recording, folder: Path, name: str, target: Path) -> str:
    _require_built(recording, name)
    write_atomic(target, (folder / f"{name}.inspector.json").read_bytes())
    return target.name


def _profile(recording: Recording, onnx_path: Path, folder: Path, engine: EngineOptions, options: ProfileOptions) -> str:
    _require_built(recording, *NAMES)
    shape = read_source(onnx_path).input_shape
    images = np.random.default_rng(0).standard_normal((engine.batch, *(length or 1 for length in shape[1:])), dtype=np.float32)
    dense, sparse = (metadata_path(folder, name) for name in NAMES)
    report = profile_pair(dense, sparse, images, engine, options)
    recording.record["profile"] = report.model_dump(mode="json")
    return _speedup_text(report)


def _require_built(recording: Recording, *names: str) -> None:
    """Engines of an earlier recording may lie in the same folder; they are not to be mistaken for this one's."""
    missing = [name for name in names if name not in recording.record]
    if missing:
        raise MachineError(f"not built in this recording: {', '.join(missing)}")


def _speedup_text(report: ProfileReport) -> str:
    interval = report.speedup.interval
    text = (
        f"dense {report.dense.median_ms:.4g} ms, sparse {report.sparse.median_ms:.4g} ms, speedup {report.speedup.ratio:.3f}x "
        f"[{interval.low:.3f}, {interval.high:.3f}] at {100 * interval.confidence:g} %, batch {report.conditions.batch}"
    )
    return text + (f"; INVALID: {'; '.join(report.invalid_because)}" if report.invalid_because else "")


def _summary(recording: Recording, device: str, version: str) -> str:
    rows = "\n".join(f"| {name} | {outcome.replace('|', '/')} |" for name, outcome in recording.steps)
    versions = {key: value for status in recording.record["statuses"] for key, value in status["versions"].items()}
    return (
        f"# TensorRT {version} on {device}\n\n"
        f"Command: `{recording.record['command']}`\n\n"
        f"Versions: {', '.join(f'{key} {value}' for key, value in sorted(versions.items()))}, "
        f"Python {recording.record['python']}\n\n"
        f"| step | outcome |\n|---|---|\n{rows}\n\n"
        f"Steps that failed: {len(recording.failures)}.\n"
    )


if __name__ == "__main__":
    sys.exit(main())
