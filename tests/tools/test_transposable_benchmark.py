from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.learn.transposable.tiles import random_tiles
from tools import transposable_benchmark

SOLVERS = ["OR-tools, tile by tile", "exact", "enumeration", "entropy", "greedy", "two-approximation", "greedy, without swaps"]


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--weights", "1000", "--compared", "4000", "--runs", "1", "--patterns", "T2:4", "T4:8"]
    assert transposable_benchmark.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("T2:4: 36,864 weights exactly")
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("| ")]
    of_four, of_eight = rows[1:9], rows[10:]
    assert [row[0] for row in of_four] == [*SOLVERS, "PyTorch's code for it"]
    assert [row[0] for row in of_eight] == [name for name in SOLVERS if name != "enumeration"]
    assert {row[1] for row in of_four} == {"250", "200"}
    assert of_four[-1][2:5] == ["not timed"] * 3


def test_losses_and_saturation_are_those_of_the_masks() -> None:
    rows = {row.name: row for row in transposable_benchmark.measure(random_tiles(300, 4), 2, runs=1)}
    assert rows["exact"].loss == 0
    for name in ("OR-tools, tile by tile", "enumeration"):
        assert abs(rows[name].loss) < 1e-11
        assert rows[name].unsaturated == 0
    assert 0.05 < rows["two-approximation"].loss < 0.15
    assert rows["two-approximation"].unsaturated > 0.9
    assert rows["greedy"].loss < rows["greedy, without swaps"].loss
    # PyTorch's own code is the greedy without swaps, on the first 200 of these tiles.
    first = {row.name: row for row in transposable_benchmark.measure(random_tiles(300, 4)[:200], 2, runs=1)}
    assert rows["PyTorch's code for it"].loss == pytest.approx(first["greedy, without swaps"].loss)


def test_the_ratio_is_to_ortools() -> None:
    rows = transposable_benchmark.measure(random_tiles(50, 8), 4, runs=1)
    assert rows[0].speedup == 1
    for row in rows:
        assert row.cpu_us is not None
        assert row.cpu_us * (row.speedup or 0) == pytest.approx(rows[0].cpu_us)


def test_kernels_of_a_file(tmp_path: Path) -> None:
    arrays = {"conv": np.ones((8, 8, 3, 3)), "stem": np.ones((8, 3, 3, 3)), "linear": np.ones((8, 8))}
    save_file({name: array.astype(np.float32) for name, array in arrays.items()}, tmp_path / "weights.safetensors")
    assert (
        transposable_benchmark.main(["--file", str(tmp_path / "weights.safetensors"), "--patterns", "T4:8", "--runs", "1"]) == 0
    )
    kernels = transposable_benchmark.kernels_of(
        tmp_path / "weights.safetensors", transposable_benchmark.NMPattern.parse("T4:8")
    )
    assert [kernel.shape for kernel in kernels] == [(8, 8, 3, 3)]


def test_as_many_weights_as_asked_for() -> None:
    for count in (1, 36_864, 36_865, 589_824, 600_000):
        total = sum(kernel.size for kernel in transposable_benchmark.random_kernels(count))
        assert count <= total < count + 589_824
