import os
from pathlib import Path

import pytest

from masksparse_deploy.engine.processor import available_core_count, processor_facts


def fake_topology(folder: Path, siblings: dict[int, str]) -> Path:
    for thread, text in siblings.items():
        path = folder / f"cpu{thread}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(text + "\n")
    return folder


@pytest.fixture
def four_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 3}, raising=False)


@pytest.mark.usefixtures("four_threads")
def test_threads_of_one_core_count_once(tmp_path: Path) -> None:
    assert available_core_count(fake_topology(tmp_path, {0: "0,2", 1: "1,3", 2: "0,2", 3: "1,3"})) == 2


@pytest.mark.usefixtures("four_threads")
def test_without_a_topology_threads_are_counted(tmp_path: Path) -> None:
    assert available_core_count(tmp_path / "none") == 4
    assert available_core_count(fake_topology(tmp_path, {0: "0"})) == 4


def test_only_what_the_process_may_use_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert available_core_count(fake_topology(tmp_path, {index: str(index) for index in range(4)})) == 1


def test_the_name_is_read_from_the_system(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text("processor : 0\nmodel name\t: A Fine Processor @ 3 GHz\n")
    facts = processor_facts(path)
    assert (facts.kind, facts.name) == ("cpu", "A Fine Processor @ 3 GHz")
    assert processor_facts(tmp_path / "none").name
