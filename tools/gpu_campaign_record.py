"""What a campaign has found so far: one JSON file, written anew after every case, so that it can be run in pieces."""

import json
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from masksparse_deploy.core.artifacts.engines import BackendStatus
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, write_atomic
from masksparse_deploy.engine.protocol import Backend

__all__ = ["Case", "Machine", "Record", "UnfinishedError", "run_cases"]

_KIND = "gpu campaign"
# A CUDA error may leave the process without a working GPU: a new process goes on behind these cases.
_MOST_FAILURES_IN_A_ROW = 5
# A case that takes the process down, or never ends within a piece, must not keep the others from running.
_MOST_DEATHS = 2
# Characters: its end tells most, and nobody can ask the machine again.
_LONGEST_TRACEBACK = 4000


class UnfinishedError(Exception):
    """The time was up in the middle of a case, which has kept what it did."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What cases run on and with.

    Attributes:
        backend: builds and runs the engines.
        status: of the backend.
        engine: options of all engines, their batch aside.
        work: where engines and ONNX files are kept between pieces.
        golden: where the inspector's JSON and build logs are recorded.
        rounds: of timing.
        builds: of each engine of a network.
        expired: whether the time is up; long cases ask between their steps.
    """

    backend: Backend
    status: BackendStatus
    engine: EngineOptions
    work: Path
    golden: Path
    rounds: int
    builds: int
    expired: Callable[[], bool]

    def check_time(self) -> None:
        """Raise UnfinishedError where the time is up."""
        if self.expired():
            raise UnfinishedError


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing to find out.

    Attributes:
        name: unique; finished cases are known by it.
        piece: the part of the campaign that it belongs to.
        files: writes the ONNX files of the case into a folder and returns their paths; needs no GPU.
        run: finds out and returns what the record keeps, in JSON's types.
    """

    name: str
    piece: str
    files: Callable[[Path], Sequence[Path]]
    run: Callable[[Machine], dict[str, Any]]


@dataclass(kw_only=True)
class Record:
    """Rows by case, those of failed ones with "error", and facts about the machine; `path` is where they are kept.

    `begun` counts how often the process ended within a case.
    """

    path: Path
    facts: dict[str, Any] = field(default_factory=dict)
    cases: dict[str, dict[str, Any]] = field(default_factory=dict)
    begun: dict[str, int] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Record":
        """The record of earlier pieces, or an empty one; raises ArtifactError for a file that is something else."""
        if not path.is_file():
            return cls(path=path)
        try:
            content = json.loads(path.read_bytes())
            if content.pop("kind") != _KIND:
                raise KeyError("kind")
            return cls(path=path, facts=content["facts"], cases=content["cases"], begun=content["begun"])
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ArtifactError(f"{path} is no record of a campaign ({error}); name another file with --out") from error

    def of_machine(self, facts: dict[str, Any]) -> None:
        """Note the facts; raises ArtifactError where earlier pieces ran on another device or with other versions."""
        for name in ("device", "versions", "backend"):
            if self.cases and self.facts.get(name) != facts.get(name):
                raise ArtifactError(
                    f"{self.path} was recorded with {name} {self.facts.get(name)}, and this is {facts.get(name)}; figures of "
                    "the two must not be mixed: name another file with --out"
                )
        self.facts = {**self.facts, **facts}

    def begin(self, name: str) -> None:
        """Note that a case runs, for the next process to know where this one ended if it does."""
        self.begun[name] = self.begun.get(name, 0) + 1
        self.write()

    def leave(self, name: str) -> None:
        """Note that it runs no more."""
        self.begun.pop(name, None)
        self.write()

    def write(self) -> None:
        """Whole or not at all."""
        content = {"kind": _KIND, "facts": self.facts, "cases": self.cases, "begun": self.begun}
        write_atomic(self.path, canonical_json(content))

    @property
    def failures(self) -> dict[str, str]:
        """Case -> error."""
        return {name: row["error"] for name, row in self.cases.items() if "error" in row}


def run_cases(
    cases: Iterable[Case],
    record: Record,
    machine: Machine,
    *,
    retry: bool,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
) -> int:
    """Run what is not finished, in order, until the time is up; a failure is recorded and the next case still runs.

    Args:
        cases: of the campaign.
        record: where rows go.
        machine: what the cases run on; says when the time is up.
        retry: run cases again that failed before.
        say: told of each case and of the end.
        clock: seconds.

    Returns:
        How many cases are left.
    """
    left, failed_in_a_row = 0, 0
    for case in cases:
        known = record.cases.get(case.name)
        if known is not None and not (retry and "error" in known):
            continue
        if left or machine.expired() or failed_in_a_row == _MOST_FAILURES_IN_A_ROW:
            left += 1
            continue
        started = clock()
        row = _row(case, record, machine)
        if row is None:
            left += 1
            continue
        failed_in_a_row = failed_in_a_row + 1 if "error" in row else 0
        record.cases[case.name] = {"piece": case.piece, **row, "seconds": round(clock() - started, 1)}
        record.leave(case.name)
        say(f"{case.name}: {row.get('error') or row.get('outcome', 'done')}")
    if left:
        why = "the time is up" if failed_in_a_row < _MOST_FAILURES_IN_A_ROW else f"{failed_in_a_row} cases in a row failed"
        say(f"stopped, as {why}, with {left} cases left; run the same command again to go on")
    return left


def _row(case: Case, record: Record, machine: Machine) -> dict[str, Any] | None:
    """What a case found, or the error that it ended with; None where the time was up."""
    deaths = record.begun.get(case.name, 0)
    if deaths >= _MOST_DEATHS:
        return {"error": f"the process ended {deaths} times within this case: a crash, or stopped from outside; see --retry"}
    record.begin(case.name)
    try:
        return case.run(machine)
    except (UnfinishedError, KeyboardInterrupt) as error:
        record.leave(case.name)
        if isinstance(error, KeyboardInterrupt):
            raise
        return None
    except Exception as error:  # whatever goes wrong on a machine seen once is what is to be written down
        told = "".join(traceback.format_exception(error))[-_LONGEST_TRACEBACK:]
        return {"error": f"{type(error).__name__}: {error}", "traceback": told}
