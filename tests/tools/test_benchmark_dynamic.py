import re

import pytest
import torch

from tools import benchmark_dynamic


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.slow
def test_every_solver_is_compared_with_a_step_without(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark_dynamic, "CASES", (("2:4", None), ("T2:4", "exact"), ("T2:4", "two-approximation")))
    assert benchmark_dynamic.main(["--rounds", "10", "--batch", "2", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet-20, batch 2, precision none, 1 threads"
    assert re.fullmatch(r"a step without +\d+\.\d ms", lines[1])
    assert [re.split(r"  +", line)[0] for line in lines[3:]] == ["2:4", "T2:4 exact", "T2:4 two-approximation"]
    for line in lines[3:]:
        rare, always = ([float(figure) for figure in match] for match in re.findall(r"([\d.]+)x \[([\d.]+), ([\d.]+)\]", line))
        assert 1 <= rare[1] <= rare[0] <= rare[2]
        # Forty times as often, up to the four decimals that are printed.
        assert always[0] - 1 == pytest.approx(40 * (rare[0] - 1), abs=40 * 0.00005)
