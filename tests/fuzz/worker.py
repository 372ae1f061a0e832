"""A process that tries one file after the other, watched from outside: what it cannot report itself is seen here."""

import contextlib
import faulthandler
import multiprocessing
import os
import resource
import signal
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

from masksparse_deploy.core.errors import MasksparseError
from tests.fuzz.stages import STAGES, Job, Stage

__all__ = ["Limits", "Result", "Worker"]

Verdict = Literal["accepted", "refused", "finding"]

# A message is for a terminal, not a dump.
_LONGEST_MESSAGE_LINES = 10
_PACKAGE = "masksparse_deploy"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost.

    Attributes:
        seconds: CPU time, which other work on the machine does not use up.
        wall_factor: a process that does nothing for that many times as long waits for something that does not come.
        memory_bytes: address space beyond what the process has when it starts.
    """

    seconds: float = 5
    wall_factor: float = 6
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, kw_only=True)
class Result:
    """How one stage ended.

    Attributes:
        text: the message of a refusal, or the traceback of a finding.
        signature: the same for findings that are likely to be one.
    """

    stage: str
    verdict: Verdict
    text: str = ""
    signature: str = ""


class Worker:
    """Runs stages on one file after the other; starts a new process when one has died.

    Args:
        folder: for the log in which a dying process leaves its traceback.
        limits: of one file.
        stages: by name; functions of modules, as the process imports them.
    """

    def __init__(self, folder: Path, limits: Limits, stages: Mapping[str, Stage] = STAGES) -> None:
        self._log = folder / "worker.log"
        self._limits = limits
        self._stages = dict(stages)
        # A server that has imported everything once forks the workers: a new one costs milliseconds.
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(["tests.fuzz.stages"])
        self._process: Any = None
        self._connection: Connection | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *error: object) -> None:
        self._stop()

    def run(self, job: Job) -> Sequence[Result]:
        """Try the file; one result for each stage that came to an end, the last one a finding if the process died."""
        connection = self._started()
        connection.send(job)
        results: list[Result] = []
        while len(results) < len(self._stages):
            try:
                _, before = self._activity()
                while not connection.poll(self._limits.seconds * self._limits.wall_factor):
                    is_ready, worked = self._activity()
                    if worked == before and not is_ready:
                        return [*results, self._lost("waits for something that does not come")]
                    before = worked
                results.append(connection.recv())
            except (EOFError, ConnectionError):
                return [*results, self._lost("")]
        return results

    def _activity(self) -> tuple[bool, int]:
        """Whether the process runs or would, and what it has worked so far: both tell waiting from a busy machine."""
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
            return fields[0] == "R", int(fields[11]) + int(fields[12])
        return False, -1

    def _started(self) -> Connection:
        if self._connection is None:
            self._log.write_bytes(b"")
            self._connection, theirs = self._context.Pipe()
            arguments = (theirs, self._stages, self._limits, str(self._log))
            self._process = self._context.Process(target=_serve, args=arguments, daemon=True)
            self._process.start()
            theirs.close()
            self._connection.recv()  # has imported and set its limits
        return self._connection

    def _lost(self, reason: str) -> Result:
        """The finding about a process that gives no more answers."""
        if reason:
            os.kill(self._process.pid, signal.SIGABRT)  # it leaves its traceback
        self._process.join(10)
        code = self._process.exitcode
        if not reason and code == -signal.SIGPROF:
            reason = f"takes more than {self._limits.seconds:g} s of CPU time"
        elif not reason:
            reason = f"died by {signal.Signals(-code).name}" if code is not None and code < 0 else f"left with exit code {code}"
        self._stop()
        log = self._log.read_text(errors="replace")
        frames = [line.strip() for line in log.splitlines() if line.lstrip().startswith("File ")]
        place = next((frame for frame in frames if _PACKAGE in frame), next(iter(frames), ""))
        return Result(stage="process", verdict="finding", text=f"{reason}\n{log}", signature=f"{reason} {_short(place)}")

    def _stop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._process.kill()
            self._process.join()
            self._process.close()


def _serve(connection: Connection, stages: Mapping[str, Stage], limits: Limits, log: str) -> None:
    """The process: a traceback into the log when it is killed, and no more memory or time than it may have."""
    with Path(log).open("wb", buffering=0) as stream:
        os.dup2(stream.fileno(), 1)
        os.dup2(stream.fileno(), 2)
        faulthandler.enable(stream)
        faulthandler.register(signal.SIGPROF, file=stream, chain=True)
        used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used_bytes + limits.memory_bytes,) * 2)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        warnings.simplefilter("error")
        connection.send(None)
        with contextlib.suppress(EOFError):
            while True:
                job = connection.recv()
                for name, stage in stages.items():
                    with _cpu_time(limits.seconds):
                        result = _tried(name, stage, job)
                    connection.send(result)


@contextlib.contextmanager
def _cpu_time(seconds: float) -> Iterator[None]:
    """Die by SIGPROF when this takes longer: code that never returns to the interpreter is stopped too."""
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def _tried(name: str, stage: Stage, job: Job) -> Result:
    try:
        stage(job)
    except MasksparseError as error:
        message = str(error)
        if not message.strip() or message.count("\n") >= _LONGEST_MESSAGE_LINES:
            return _finding(name, error, "a message that is empty or too long")
        return Result(stage=name, verdict="refused", text=message)
    except Exception as error:  # what it is, is what is wanted to know
        return _finding(name, error, type(error).__name__)
    return Result(stage=name, verdict="accepted")


def _finding(name: str, error: Exception, what: str) -> Result:
    frames = traceback.extract_tb(error.__traceback__)
    frame = next((frame for frame in reversed(frames) if _PACKAGE in frame.filename), frames[-1])
    place = f'File "{frame.filename}", line {frame.lineno} in {frame.name}'
    text = "".join(traceback.format_exception(error))
    return Result(stage=name, verdict="finding", text=text, signature=f"{name}: {what} {_short(place)}")


def _short(place: str) -> str:
    """A traceback's line without the folders above the package's."""
    return place[place.rfind(f"{_PACKAGE}/") :].replace('"', "") if _PACKAGE in place else place
