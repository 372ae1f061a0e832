"""One of the processes that learn the masks of the tiny network; the tests start it with the variables of a launcher.

    python -m tests.learn.learning_process FOLDER RUNS

RUNS is a JSON list. A line of JSON tells the count that all agree on, and another the result of each run. After step `pause`
the main process prints a line and waits for input.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch

from masksparse_deploy.core.errors import MasksparseError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.processes import joined_processes
from tests.learn.learning import OPTIONS, TRAIN, content, run
from tests.learn.networks import zoo


def result(folder: Path, plan: dict[str, Any]) -> dict[str, object]:
    seen: list[int] = []

    def progress(description: str, done: int, total: int) -> None:
        seen.append(done)
        if done == plan.get("pause"):
            print("paused", flush=True)
            sys.stdin.readline()

    train = Samples(TRAIN.images[: plan.get("images", len(TRAIN))], TRAIN.labels[: plan.get("images", len(TRAIN))])
    try:
        outcome = run(
            folder / plan["checkpoint"],
            plan.get("options", {}),
            method=plan.get("method", "scores"),
            model=zoo() if plan.get("zoo") else None,
            train=train,
            progress=progress,
        )
    except MasksparseError as error:
        return {"error": type(error).__name__, "message": str(error), "seen": seen}
    return {"content": content(outcome), "seen": seen}


def main() -> None:
    torch.set_num_threads(1)
    with joined_processes(OPTIONS) as processes:
        # Each process counts something else.
        print(json.dumps({"agreed": processes.agreed(100 + processes.index)}), flush=True)
        for plan in json.loads(sys.argv[2]):
            print(json.dumps(result(Path(sys.argv[1]), plan)), flush=True)


if __name__ == "__main__":
    main()
