"""Everything to find out on a machine with an NVIDIA GPU, in one command that can be run in pieces.

    python -m tools.gpu_campaign --out out/gpu/campaign.json --table

It times a few convolutions with the same 2:4 weights, sparse tactics forbidden and allowed, records what the engine inspector
and the builder's log say to tests/golden/, runs the tests that need a GPU, refits an engine and validates one, times ResNet-18
and ResNet-50 dense against sparse, and then many convolutions. Run it again until it says that nothing is left: finished cases
are skipped, failures are recorded and the next case still runs, also after a case that took the process down twice. --table
writes docs/measurements/gpu-<GPU>.md and .json.

Validation needs files that are made with PyTorch, on any machine; the folder travels, it is small:

    python -m tools.gpu_campaign --prepare out/gpu/prepared
    python -m tools.gpu_campaign --prepared out/gpu/prepared --out out/gpu/campaign.json --table

Needed there: this repository; and either the extras gpu and tensorrt with onnx-ir, or a folder with TensorRT 8.6, a Python 3.10
and the packages numpy<2 (the bindings of 8.6 are built for NumPy 1), click, rich, pydantic>=2, onnx<1.18, onnx-ir,
cuda-python==12.*, nvidia-ml-py, polygraphy, scipy, safetensors, pyyaml, onnxruntime, pillow and, for the tests, pytest. With
such a kit, made by `make_trt_kit.sh KIT 'numpy<2' click rich 'pydantic>=2' 'onnx<1.18' onnx-ir 'cuda-python==12.*'
nvidia-ml-py polygraphy scipy safetensors pyyaml onnxruntime pillow pytest`, it is, in the repository:
`KIT/run -m tools.gpu_campaign ...`.

Without a GPU it says what is missing and exits with 3. `--dry-run` does everything up to the first CUDA call, and
`--backend onnxruntime` rehearses everything on a CPU. Exit code 0 if all cases asked for are finished, 1 if one failed, 5 if
the time was up before.
"""

import argparse
import os
import re
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from masksparse_deploy.core.artifacts.engines import BackendStatus
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions, ForecastOptions
from masksparse_deploy.core.errors import MasksparseError, UsageError
from masksparse_deploy.core.files import canonical_json, write_atomic
from masksparse_deploy.engine.select import get_backend
from tools.gpu_campaign_chain import chain_cases, gpu_test_case, prepare, refit_cases
from tools.gpu_campaign_dry import dry_run
from tools.gpu_campaign_kernels import first_kernel_cases, kernel_cases
from tools.gpu_campaign_networks import network_cases, pair_case, recording_cases
from tools.gpu_campaign_record import Case, Machine, Record, run_cases
from tools.gpu_campaign_table import page

__all__ = ["main", "plan"]

REPOSITORY = Path(__file__).resolve().parent.parent
# What answers most for its minutes comes first: whether sparse tactics are there and win, then whether all else works.
PIECES = ("first-kernels", "golden", "tests", "refit", "validation", "networks", "kernels")
PRECISIONS = ("int8", "fp16")
FAILED, MACHINE_LACKS_SOMETHING, NOT_FINISHED = 1, 3, 5
# TensorRT 8.6 without cuBLAS and cuDNN, which the kit has not.
_KIT_SOURCES = ("EDGE_MASK_CONVOLUTIONS", "JIT_CONVOLUTIONS")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the campaign, or what stands in for it; returns the exit code."""
    options = _parse(arguments)
    # drivers older than CUDA 12.2 would load all of TensorRT 8.6's kernels before the first build
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    try:
        return _run(options, sys.argv[1:] if arguments is None else arguments)
    except MasksparseError as error:
        print(f"gpu_campaign: {error}", file=sys.stderr)
        return error.exit_code


def _run(options: argparse.Namespace, words: Sequence[str]) -> int:
    if options.prepare is not None:
        prepare(options.prepare, PRECISIONS)
        print(options.prepare)
        return 0
    planned = {case.name: case for case in plan(options)}  # the first kernels are among all of them, too
    cases = [case for name, case in planned.items() if any(fnmatchcase(name, glob) for glob in options.only)]
    if not cases:
        raise UsageError(f"no case is named {' or '.join(options.only)}; --dry-run lists all of them")
    if options.dry_run:
        failed_count = dry_run(cases, options.work / "dry", print)
        print(f"{len(cases)} cases, {failed_count} failed; nothing was run on a GPU")
        return FAILED if failed_count else 0
    backend = get_backend(options.backend)
    status = backend.status()
    if not status.available:
        print(f"gpu_campaign: {status.reason}", file=sys.stderr)
        return MACHINE_LACKS_SOMETHING
    record = Record.open(options.out)
    record.of_machine(_facts(status, words))
    end = time.monotonic() + options.seconds
    sources = _sources(options, status.versions.get("tensorrt", ""))
    engine = EngineOptions(
        backend=options.backend,
        workspace_mib=options.workspace_mib,
        tactic_sources=sources,
        # builds are to differ as builds do, and a log tells the times of what was timed anew only
        timing_cache=NO_TIMING_CACHE,
    )
    machine = Machine(
        backend=backend,
        status=status,
        engine=engine,
        work=options.work,
        golden=options.golden,
        rounds=options.rounds,
        builds=options.builds,
        expired=lambda: time.monotonic() > end,
    )
    say = partial(print, file=sys.stderr, flush=True)
    left = run_cases(cases, record, machine, retry=options.retry, say=say)
    if options.table:
        print(_write_table(record, options.measurements))
    failed = [name for name in record.failures if any(case.name == name for case in cases)]
    return NOT_FINISHED if left else FAILED if failed else 0


def plan(options: argparse.Namespace) -> Iterator[Case]:
    """All cases of the pieces asked for, those from which most is learned first."""
    precisions = options.precisions
    if options.dense is not None:
        yield pair_case(options.dense.stem, lambda folder: (options.dense, options.sparse), batch=options.batch)
    for piece in options.pieces:
        if piece == "first-kernels":
            yield from first_kernel_cases(precisions)
        elif piece == "tests":
            yield gpu_test_case()
        elif piece == "golden":
            yield from recording_cases(precisions)
        elif piece == "networks":
            yield from network_cases(precisions)
        elif piece == "refit":
            yield from refit_cases(precisions)
        elif piece == "validation" and options.prepared is not None:
            yield from chain_cases(options.prepared)
        elif piece == "kernels":
            yield from kernel_cases(precisions)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--out", type=Path, default=Path("out/gpu/campaign.json"), help="the record (default: out/gpu/campaign.json)")
    add("--work", type=Path, default=Path("out/gpu/work"), help="where engines are kept between pieces (default: out/gpu/work)")
    add("--seconds", type=float, default=300, help="start no further build after so many (default: 300)")
    add("--pieces", nargs="+", choices=PIECES, default=PIECES, help=f"what to run (default: {' '.join(PIECES)})")
    add("--only", nargs="+", default=["*"], help="only cases of these names, with wildcards")
    add("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS, help="of kernels and networks (default: both)")
    add("--prepare", type=Path, metavar="FOLDER", help="write the files that validation needs, with PyTorch, and stop")
    add("--prepared", type=Path, metavar="FOLDER", help="a folder that --prepare wrote; without it nothing is validated")
    add("--dense", type=Path, help="a dense ONNX file of your own, for a further comparison")
    add("--sparse", type=Path, help="its sparse twin")
    add("--batch", type=int, default=64, help="images an inference of these (default: 64)")
    add("--rounds", type=_rounds, default=30, help="timing rounds (default: 30)")
    add("--builds", type=_positive, default=3, help="builds of each engine of a network (default: 3)")
    add("--workspace-mib", type=int, default=4096, help="scratch memory for TensorRT (default: 4096)")
    add(
        "--tactic-sources",
        nargs="+",
        default=None,
        help=f"for the kit: {' '.join(_KIT_SOURCES)}, its default with TensorRT 8.6",
    )
    add("--backend", default="tensorrt", help="onnxruntime: a rehearsal on the CPU (default: tensorrt)")
    add("--retry", action="store_true", help="run cases again that failed")
    add("--table", action="store_true", help="write the page and the record to docs/measurements")
    add("--golden", type=Path, default=REPOSITORY / "tests" / "golden", help="where TensorRT's output is recorded")
    add("--measurements", type=Path, default=REPOSITORY / "docs" / "measurements", help="where --table writes")
    add("--dry-run", action="store_true", help="make and read all files, and call no CUDA")
    options = parser.parse_args(arguments)
    if (options.dense is None) != (options.sparse is None):
        parser.error("--dense and --sparse belong together; give both files, or none")
    return options


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _rounds(text: str) -> int:
    """Told before anything is built."""
    try:
        return ForecastOptions(rounds=int(text)).rounds
    except ValidationError as error:
        raise argparse.ArgumentTypeError(error.errors()[0]["msg"]) from error


def _sources(options: argparse.Namespace, version: str) -> tuple[str, ...] | None:
    if options.tactic_sources is not None:
        return tuple(options.tactic_sources)
    return _KIT_SOURCES if version.startswith("8.") else None


def _facts(status: BackendStatus, words: Sequence[str]) -> dict[str, object]:
    assert status.device is not None
    return {
        "command": shlex.join(["python", "-m", "tools.gpu_campaign", *words]),
        "python": sys.version.split()[0],
        "backend": status.backend,
        "device": status.device.model_dump(mode="json"),
        "versions": dict(status.versions),
    }


def _write_table(record: Record, folder: Path) -> Path:
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", f"gpu-{record.facts['device']['name']}").strip("-").lower()
    content = {"facts": record.facts, "cases": record.cases}
    write_atomic(folder / f"{stem}.json", canonical_json(content))
    write_atomic(folder / f"{stem}.md", page(record).encode())
    return folder / f"{stem}.md"


if __name__ == "__main__":
    sys.exit(main())
