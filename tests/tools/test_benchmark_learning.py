import re

import pytest
import torch

from tools import benchmark_learning


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def test_every_way_to_learn_is_compared_with_the_dense_step(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--rounds", "10", "--batch", "2", "--device", "cpu", "--precision", "none"]
    assert benchmark_learning.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ResNet-20, batch 2, precision none, 1 threads"
    assert re.fullmatch(r"dense weights +\d+\.\d ms", lines[1])
    assert [re.split(r"  +", line)[0] for line in lines[2:]] == list(benchmark_learning.METHODS)
    for line in lines[2:]:
        match = re.search(r" \d+\.\d ms +([\d.]+)x \[([\d.]+), ([\d.]+)\]$", line)
        assert match, line
        assert float(match[2]) <= float(match[1]) <= float(match[3])
