"""The example of the page on solvers runs as it is shown."""

import re

import pytest

from tests.requirements import REPOSITORY


def test_the_example_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = (REPOSITORY / "docs" / "transposable_solvers.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(example, "docs/transposable_solvers.md", "exec"), {})
    assert re.fullmatch(r"9\d% of the tiles keep 4 in every row and column\n", capsys.readouterr().out)
