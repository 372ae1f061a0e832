import pytest

from masksparse_deploy.core.launch import is_main_process, process_count


@pytest.mark.parametrize(("rank", "expected"), [(None, True), ("0", True), ("1", False), ("12", False)])
def test_one_process_is_the_main_one(monkeypatch: pytest.MonkeyPatch, rank: str | None, expected: bool) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() == expected


@pytest.mark.parametrize(("size", "expected"), [(None, 1), ("1", 1), ("4", 4), ("auto", 1)])
def test_how_many_processes_a_launcher_started(monkeypatch: pytest.MonkeyPatch, size: str | None, expected: int) -> None:
    if size is None:
        monkeypatch.delenv("WORLD_SIZE", raising=False)
    else:
        monkeypatch.setenv("WORLD_SIZE", size)
    assert process_count() == expected
