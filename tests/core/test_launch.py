import pytest

from masksparse_deploy.core.launch import is_main_process


@pytest.mark.parametrize(("rank", "expected"), [(None, True), ("0", True), ("1", False), ("12", False)])
def test_one_process_is_the_main_one(monkeypatch: pytest.MonkeyPatch, rank: str | None, expected: bool) -> None:
    if rank is None:
        monkeypatch.delenv("RANK", raising=False)
    else:
        monkeypatch.setenv("RANK", rank)
    assert is_main_process() == expected
