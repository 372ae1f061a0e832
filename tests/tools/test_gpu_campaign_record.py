"""How a campaign runs its cases, piece by piece, and what it keeps of a builder's log."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine.build_log import parse_log
from masksparse_deploy.forecast.layer_model import LAYER
from tools.gpu_campaign_listening import builder_times
from tools.gpu_campaign_record import Case, Machine, Record, run_cases


def record(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "campaign.json").read_bytes())
    return content


def case(name: str, seconds: float, clock: list[float], error: str = "") -> Case:
    def run(machine: Machine) -> dict[str, Any]:
        clock[0] += seconds
        if error:
            raise MachineError(error)
        return {"outcome": "fine"}

    return Case(name=name, piece="tests", files=lambda folder: (), run=run)


def machine_until(end: float, clock: list[float]) -> Any:
    """All that the runner of cases asks a machine for."""
    return SimpleNamespace(expired=lambda: clock[0] > end)


def test_pieces_end_in_time_and_go_on_where_they_were(tmp_path: Path) -> None:
    clock, said = [0.0], []
    cases = [case("a", 60, clock), case("b", 60, clock, "broken"), case("c", 1, clock), case("d", 1, clock)]

    def piece(retry: bool = False) -> int:
        found = Record.open(tmp_path / "campaign.json")
        machine = machine_until(clock[0] + 100, clock)
        return run_cases(cases, found, machine, retry=retry, say=said.append, clock=lambda: clock[0])

    assert piece() == 2
    assert said[-1] == "stopped, as the time is up, with 2 cases left; run the same command again to go on"
    assert set(record(tmp_path)["cases"]) == {"a", "b"}
    assert piece() == 0
    broken = record(tmp_path)["cases"]["b"]
    assert "in run" in broken.pop("traceback")
    assert broken == {"piece": "tests", "error": "MachineError: broken", "seconds": 60}
    begun = len(said)
    assert piece(retry=True) == 0
    assert said[begun:] == ["b: MachineError: broken"]


def test_many_failures_in_a_row_end_the_process_that_may_have_lost_its_gpu(tmp_path: Path) -> None:
    clock, said = [0.0], []
    cases = [case(str(number), 1, clock, "CUDA: an illegal memory access") for number in range(7)]
    for left in (2, 0):
        found = Record.open(tmp_path / "campaign.json")
        machine = machine_until(100, clock)
        assert run_cases(cases, found, machine, retry=False, say=said.append, clock=lambda: clock[0]) == left
    assert said[5] == "stopped, as 5 cases in a row failed, with 2 cases left; run the same command again to go on"
    assert len(said) == 8


def test_a_case_that_takes_the_process_down_twice_is_passed_over(tmp_path: Path) -> None:
    class Death(BaseException):
        """As a crash inside a library, which no handler sees."""

    def die(machine: Machine) -> dict[str, Any]:
        raise Death

    clock, said = [0.0], []
    deadly = Case(name="deadly", piece="tests", files=lambda folder: (), run=die)
    cases = [deadly, case("other", 1, clock)]

    def piece(retry: bool = False) -> int:
        found = Record.open(tmp_path / "campaign.json")
        return run_cases(cases, found, machine_until(100, clock), retry=retry, say=said.append, clock=lambda: clock[0])

    for _ in range(2):
        with pytest.raises(Death):
            piece()
    assert piece() == 0
    assert "the process ended 2 times within this case" in record(tmp_path)["cases"]["deadly"]["error"]
    assert said[-1] == "other: fine" and record(tmp_path)["begun"] == {}
    with pytest.raises(Death):
        piece(retry=True)


def test_what_the_builder_does_not_tell_is_not_made_up() -> None:
    assert builder_times(None, LAYER) is None
    assert builder_times(parse_log("Timing Runner: other (X)\nTactic Name: a_sparse_b Tactic: 0x1 Time: 1"), LAYER) is None
    log = parse_log(f"Timing Runner: {LAYER} (X)\nTactic Name: dense Tactic: 0x1 Time: 1")
    assert builder_times(log, LAYER) == {"tactic_count": 1, "sparse_count": 0}
    other = "Autotuning format combination: a -> b\nTiming Runner: layer (X)\nTactic Name: a_sparse_b Tactic: 0x2 Time: 2"
    found = builder_times(parse_log(f"Timing Runner: {LAYER} (X)\nTactic Name: dense Tactic: 0x1 Time: 1\n{other}"), LAYER)
    assert found is not None and (found["dense_ms"], found["sparse_ms"], found["same_formats"]) == (1, 2, False)
