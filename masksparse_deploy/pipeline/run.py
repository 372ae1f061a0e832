"""The whole chain, resumable: a stage whose inputs have not changed is not run again."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.lock import exclusive
from masksparse_deploy.pipeline.stages import STAGES, Stage
from masksparse_deploy.pipeline.stamps import is_current, stage_key, write_stamp

__all__ = ["StageResult", "run_chain"]


@dataclass(frozen=True)
class StageResult:
    """What became of a stage; `seconds` is how long it took."""

    stage: str
    status: Literal["done", "unchanged"]
    seconds: float


def run_chain(
    job: Job,
    *,
    stages: Sequence[Stage] = STAGES,
    until: str | None = None,
    on_result: Callable[[StageResult], None] = lambda result: None,
    progress: Progress = silent,
    clock: Callable[[], float] = time.monotonic,
) -> tuple[StageResult, ...]:
    """Run the stages of `job` in order; the artifacts are then in `job.out`.

    Outputs appear whole or not at all and the stamp comes last, so a run that was killed goes on where it was.

    Args:
        job: what to do and where.
        stages: those of the whole chain by default.
        until: name of the last stage to run; all by default.
        on_result: called after each stage.
        progress: called while a stage works.
        clock: seconds.

    Raises:
        MachineError: this machine lacks what one of the stages needs; nothing was run.
        MasksparseError: as the stages do; what earlier stages wrote stays and is not made again.
    """
    results = []
    names = [stage.name for stage in stages]
    wanted = stages[: names.index(until) + 1] if until in names else stages
    for stage in wanted:
        stage.check(job)
    with exclusive(job.out):
        for stage in wanted:
            start = clock()
            key = stage_key(stage.name, stage.inputs(job))
            current = is_current(job.out, stage.name, key)
            if not current:
                stage.run(job, progress)
                write_stamp(job.out, stage.name, key, stage.outputs(job))
            result = StageResult(stage.name, "unchanged" if current else "done", clock() - start)
            results.append(result)
            on_result(result)
    return tuple(results)
