"""Learning in several processes, and processes that are killed."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import save_file

from tests.learn.learning import TRAIN, content, run
from tests.models.tiny_cnn import tiny_cnn
from tests.requirements import REPOSITORY

SECONDS = 300


@contextmanager
def started(folder: Path, plans: list[dict[str, Any]], count: int = 1) -> Iterator[list[subprocess.Popen[str]]]:
    """Start `count` processes that know of one another, as a launcher would; none is left at the end of the block."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "tests.learn.learning_process", str(folder), json.dumps(plans)]
    pipes: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with ExitStack() as stack:
        processes = []
        for index in range(count):
            variables = {
                "RANK": index,
                "LOCAL_RANK": index,
                "WORLD_SIZE": count,
                "LOCAL_WORLD_SIZE": count,
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": 1,
            }
            environment = {**os.environ, **({name: str(value) for name, value in variables.items()} if count > 1 else {})}
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, text=True, **pipes)
            # The last entered is left first: killed, and only then waited for.
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        yield processes


def results(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    """The results of all runs; fails where the process hangs, writes to stderr, or disagrees with the main process."""
    output, errors = process.communicate(timeout=SECONDS)
    assert errors == ""
    assert process.returncode == 0
    agreed, *found = [json.loads(line) for line in output.splitlines()]
    assert agreed == {"agreed": 100}
    return found


def wait_for_pause(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == '{"agreed": 100}\n'
    assert process.stdout.readline() == "paused\n"


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=SECONDS)
    assert process.returncode == -signal.SIGKILL


def test_a_process_killed_in_mid_epoch_goes_on_to_the_same_masks(tmp_path: Path) -> None:
    # Three steps are an epoch; the state after the fourth is there when the fifth is done.
    plan = {"checkpoint": "c", "method": "gumbel", "options": {"checkpoint_steps": 1}, "pause": 5}
    with started(tmp_path, [plan]) as (process,):
        wait_for_pause(process)
        kill(process)
    seen: list[int] = []
    continued = run(tmp_path / "c", method="gumbel", progress=lambda text, done, total: seen.append(done))
    assert seen == [5, 6, 7, 8, 9]
    assert content(continued) == content(run(tmp_path / "whole", method="gumbel"))


def test_two_processes_learn_the_same_and_stop_together(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    plain = {"batch_size": 16, "batch_norm": False, "augment": "none"}
    positions = {"batch_size": 16, "position_rate": 0.3}
    plans: list[dict[str, Any]] = [
        {"checkpoint": "a", "options": {"batch_size": 16, "accumulate": 2, "max_steps": 5}},
        {"checkpoint": "b", "method": "gumbel", "options": {"batch_size": 16, "autocast": "bfloat16"}},
        {"checkpoint": "c", "options": plain},
        {"checkpoint": "w", "method": "sparse-training", "options": {"batch_size": 16, "pattern": "T2:4", "mask_steps": 2}},
        # What is drawn back is the same in both.
        {"checkpoint": "s", "method": "subp", "options": {"batch_size": 16, "pattern": "1x8@0.5", "channel_block": 1}},
        # So are the maps of positions, and which of them is kept.
        {"checkpoint": "p", "method": "sparse-training", "options": positions},
        {"checkpoint": "q", "method": "sparse-training", "options": {**positions, "position_selection": "training-loss"}},
        # With a layer that never runs, and that other processes must not wait for.
        {"checkpoint": "z", "method": "sparse-training", "zoo": True, "options": {"batch_size": 16, "max_steps": 3}},
        {"checkpoint": "file/d"},
        {"checkpoint": "e", "images": 3},
    ]
    with started(tmp_path, plans, count=2) as processes:
        main, other = (results(process) for process in processes)
    for index in range(8):
        assert main[index]["content"] == other[index]["content"]
    # The main process alone shows progress and writes.
    assert [len(result["seen"]) for result in main] == [3, 9, 9, 9, 9, 6, 9, 3, 1, 0]
    assert not any(result["seen"] for result in other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "c", "file", "p", "q", "s", "w", "z"]
    # What the main process alone fails at ends the others too, who would wait for it else.
    assert main[8]["error"] == "OutputError"
    assert other[8]["message"] == "the main process failed, see its message; all processes stop"
    assert main[9] == other[9]
    assert "data.train has 3 images, and a step needs at least 4: 2 for each of mask.accumulate 1" in main[9]["message"]
    # Two processes see in a step what one sees with two batches. A half of the sum of two float32 means is their mean.
    alone = content(run(tmp_path / "alone", {**plain, "accumulate": 2}))
    assert main[2]["content"][0] == alone[0]
    assert main[2]["content"][2] == pytest.approx(alone[2], abs=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_when_one_of_two_processes_is_killed_the_other_stops_and_both_go_on(tmp_path: Path, killed: int) -> None:
    options = {"batch_size": 16, "checkpoint_steps": 1}
    with started(tmp_path, [{"checkpoint": "c", "options": options, "pause": 5}], count=2) as processes:
        wait_for_pause(processes[0])
        kill(processes[killed])
        output, errors = processes[1 - killed].communicate("\n", timeout=SECONDS)
    stopped = json.loads(output.splitlines()[-1])
    assert stopped["error"] == "MachineError", errors
    assert f"process {1 - killed} of 2 lost the others" in stopped["message"]
    plans = [{"checkpoint": name, "options": options} for name in ("c", "whole")]
    with started(tmp_path, plans, count=2) as processes:
        main, other = (results(process) for process in processes)
    assert main[0]["seen"] == [5, 6, 7, 8, 9]
    assert main[0]["content"] == main[1]["content"] == other[0]["content"] == other[1]["content"]


TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = ["accelerate.commands.launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [TORCHRUN, [*ACCELERATE, "--mixed_precision", "no", "--dynamo_backend", "no"]])
def test_the_command_works_under_a_launcher(tmp_path: Path, launcher: list[str]) -> None:
    save_file(tiny_cnn().state_dict(), tmp_path / "model.safetensors")
    np.savez(tmp_path / "data.npz", images=TRAIN.images, labels=TRAIN.labels)
    command = [sys.executable, "-m", *launcher, "-m", "masksparse_deploy", "learn", "--json"]
    for option, value in {
        "factory": "tests.models.tiny_cnn:tiny_cnn",
        "weights": tmp_path / "model.safetensors",
        "train": tmp_path / "data.npz",
        "test": tmp_path / "data.npz",
        "epochs": 2,
        "batch-size": 16,
        "device": "cpu",
        "out": tmp_path / "out",
    }.items():
        command += [f"--{option}", str(value)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert done.returncode == 0, done.stderr
    # One process prints, and what it prints is what it wrote.
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "learn.json").read_text())
    # Beside them lies the lock that keeps other commands away.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [".stages", "learn.json", "masks.safetensors"]
