import numpy as np
import pytest

from masksparse_deploy.core.patterns import NMPattern
from tools import hardening_benchmark


def test_the_network_has_the_size_that_it_claims() -> None:
    kernels = hardening_benchmark.resnet50_kernels()
    assert len(kernels) == 53  # 52 convolutions behind the first one, and the linear layer
    assert sum(array.size for array in kernels.values()) == 25_493_504


def test_every_step_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = {"layer0.weight": np.random.default_rng(0).random((8, 8, 3, 3), dtype=np.float32)}
    monkeypatch.setattr(hardening_benchmark, "resnet50_kernels", lambda: small)
    assert hardening_benchmark.main(["--pattern", "1:4", "--runs", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "576 weights, 1:4"
    assert [line.split()[0] for line in lines[1:]] == [*hardening_benchmark.STEPS, "total"]


def test_steps_are_measured_one_by_one() -> None:
    small = {"w": np.random.default_rng(0).random((8, 8), dtype=np.float32)}
    assert list(hardening_benchmark.measure(small, NMPattern(n=2, m=4))) == list(hardening_benchmark.STEPS)
