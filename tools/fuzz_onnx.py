"""Thousands of damaged and hostile ONNX files through the linter and the bake stage.

    OMP_NUM_THREADS=1 python tools/fuzz_onnx.py --count 10000 --seed 0 --out out/fuzz

prints how each kind of mutation ended and exits with 1 when a file crashed or hung something, or left something behind; such
files are kept in the output folder, one folder each, and `--replay FOLDER` tries one of them again. docs/fuzz.md has more.
"""

import argparse
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the seeds and mutations are among the tests

from tests.fuzz.cases import MODEL_FOLDER, Case, make_case, read_case
from tests.fuzz.hostile_files import MODEL_NAME
from tests.fuzz.stages import STAGES, Job, Stage
from tests.fuzz.worker import Limits, Result, Worker

__all__ = ["Summary", "fuzz", "main", "replay"]

# Of findings that look like one, so many are kept.
_KEPT_COUNT = 3


@dataclass
class Summary:
    """What came out: endings of each stage by kind of mutation, and the numbers of the cases of each finding."""

    endings: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    findings: dict[str, list[int]] = field(default_factory=dict)

    def add(self, case: Case, results: Sequence[Result]) -> list[Result]:
        """Count the results of one case; returns its findings."""
        found = [result for result in results if result.verdict == "finding"]
        for result in results:
            self.endings[case.mutation, result.stage, result.verdict] += 1
        for result in found:
            self.findings.setdefault(result.signature, []).append(case.number)
        return found


def fuzz(
    numbers: Iterable[int],
    *,
    seed: int,
    limits: Limits,
    kept: Path | None = None,
    stages: Mapping[str, Stage] = STAGES,
) -> Summary:
    """Make the cases of those numbers and try each of them.

    Args:
        numbers: which cases.
        seed: of all random choices.
        limits: what one file may cost.
        kept: folder for the first cases of each finding; None keeps none.
        stages: what to try, by name.
    """
    summary = Summary()
    with _scratch() as scratch, Worker(scratch, limits, stages) as worker:
        for number in numbers:
            case = make_case(seed, number)
            found = summary.add(case, _tried(case, worker, scratch))
            is_new = any(len(summary.findings[result.signature]) <= _KEPT_COUNT for result in found)
            if kept is not None and is_new:
                case.keep(kept / f"{seed}-{number}", "\n\n".join(f"{result.signature}\n{result.text}" for result in found))
    return summary


def replay(folder: Path, *, limits: Limits) -> Sequence[Result]:
    """Try a case that was kept once more."""
    with _scratch() as scratch, Worker(scratch, limits) as worker:
        return _tried(read_case(folder), worker, scratch)


def _tried(case: Case, worker: Worker, scratch: Path) -> list[Result]:
    """Lay the case out, run the stages, and look at what they left behind."""
    folder, out = scratch / MODEL_FOLDER, scratch / "out"
    for old in (folder, out):
        shutil.rmtree(old, ignore_errors=True)
    case.layout.write(folder)
    before = _content(folder)
    job = Job(model=folder / MODEL_NAME, out=out, seed_name=case.seed_name, precision=case.precision)
    results = list(worker.run(job))
    baked = any(result.stage == "bake" and result.verdict == "accepted" for result in results)
    if _content(folder) != before:
        results.append(_left("changes the folder of the file it reads"))
    if not baked and _content(out):
        results.append(_left(f"leaves {', '.join(_content(out))} behind, though it did not end well"))
    if baked and not {"dense.onnx", "sparse.onnx", "bake.json"} <= set(_content(out)):
        results.append(_left(f"ends well with only {', '.join(_content(out))}"))
    if any(name.endswith(".partial") for name in _content(out)):
        results.append(_left("leaves a temporary file behind"))
    for result in results[: len(results) if case.layout.must_refuse else 0]:
        if result.verdict == "accepted":
            what = f"{result.stage} takes what it must refuse ({case.mutation})"
            results.append(Result(stage=result.stage, verdict="finding", text=what, signature=what))
    return results


def _left(what: str) -> Result:
    return Result(stage="folders", verdict="finding", text=what, signature=what)


def _content(folder: Path) -> dict[str, int]:
    """Names and sizes of what is in a folder, in its folders too."""
    if not folder.is_dir():
        return {}
    return {str(path.relative_to(folder)): path.lstat().st_size for path in sorted(folder.rglob("*"))}


@contextmanager
def _scratch() -> Iterator[Path]:
    """A folder in memory where there is one: thousands of small files need no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="fuzz-onnx-", dir=memory if memory.is_dir() else None) as name:
        yield Path(name)


def table(summary: Summary, stages: Sequence[str]) -> Table:
    """How each kind of mutation ended: accepted and refused by each stage, and findings."""
    rows = Table(box=None, pad_edge=False, header_style="bold")
    rows.add_column("mutation", no_wrap=True)
    columns = [(stage, verdict) for stage in stages for verdict in ("accepted", "refused")]
    for title in (*(" ".join(column) for column in columns), "findings"):
        rows.add_column(title, justify="right")
    kinds = list(dict.fromkeys(kind for kind, _, _ in summary.endings))
    for kind in sorted(kinds):
        found = sum(count for (name, _, verdict), count in summary.endings.items() if (name, verdict) == (kind, "finding"))
        rows.add_row(kind, *(str(summary.endings[(kind, *column)]) for column in columns), str(found))
    sums = [sum(summary.endings[(kind, *column)] for kind in kinds) for column in columns]
    rows.add_row("all", *map(str, sums), str(sum(map(len, summary.findings.values()))), style="bold")
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; prints the table and the findings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=Limits.seconds, help="CPU time that one stage may take on one file")
    parser.add_argument("--stages", nargs="+", choices=list(STAGES), default=list(STAGES), help="what to try each file with")
    parser.add_argument("--out", type=Path, help="folder that keeps files with findings")
    parser.add_argument("--replay", type=Path, metavar="FOLDER", help="try one kept file again instead")
    options = parser.parse_args(arguments)
    limits = Limits(seconds=options.seconds)
    output = Console()
    if options.replay is not None:
        results = replay(options.replay, limits=limits)
        for result in results:
            output.print(
                f"{result.stage}: {result.verdict} {result.text}".rstrip(), markup=False, highlight=False, soft_wrap=True
            )
        return int(any(result.verdict == "finding" for result in results))
    numbers = range(options.first, options.first + options.count)
    shown = track(numbers, "mutated files", console=Console(stderr=True))
    stages = {name: STAGES[name] for name in options.stages}
    summary = fuzz(shown, seed=options.seed, limits=limits, kept=options.out, stages=stages)
    output.print(table(summary, options.stages))
    for signature, cases in sorted(summary.findings.items(), key=lambda item: -len(item[1])):
        numbers_shown = ", ".join(map(str, cases[:_KEPT_COUNT]))
        output.print(f"{len(cases)} x {signature} (cases {numbers_shown})", markup=False, highlight=False, soft_wrap=True)
    return int(bool(summary.findings))


if __name__ == "__main__":
    sys.exit(main())
