import re

import numpy as np
import pytest

from tools import norm_benchmark
from tools.norm_benchmark import Layer


def test_the_networks_have_the_sizes_that_they_claim() -> None:
    # torchvision's parameter counts less those of batch norm and of the linear layer's bias
    for name, layer_count, parameter_count in (("resnet18", 21, 11_689_512), ("resnet50", 54, 25_557_032)):
        layers = norm_benchmark.resnet_layers(name)
        assert len(layers) == layer_count
        batch_norm = sum(2 * layer.out_channels for layer in layers[:-1])
        weights = sum(layer.out_channels * layer.in_channels * layer.taps**2 for layer in layers)
        assert weights + batch_norm + 1000 == parameter_count


def test_layers_are_timed_and_compared(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    small = Layer(out_channels=8, in_channels=8, taps=3, stride=1, padded=9)
    tiny = Layer(out_channels=4, in_channels=8, taps=1, stride=1, padded=1)
    monkeypatch.setattr(norm_benchmark, "resnet_layers", lambda name: [small, small, tiny])
    assert norm_benchmark.main(["--compare"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"3x3 8 -> 8 stride 1 on 9 +2 x +[\d.]+ s   eigenvalues [\d.]+x, Gram iteration [\d.]+x as long", lines[0]
    )
    assert re.fullmatch(r"1x1 8 -> 4 +1 x +[\d.]+ s", lines[1])
    assert lines[2].startswith("resnet50: 3 layers, 4 norms each: ")


def test_gram_iteration_is_an_upper_bound_and_as_tight_as_asked() -> None:
    generator = np.random.default_rng(0)
    for _ in range(20):
        symbol = generator.standard_normal((6, 5)) + 1j * generator.standard_normal((6, 5))
        exact = float(np.linalg.norm(symbol, 2))
        assert exact <= norm_benchmark._gram_iteration(symbol.conj().T @ symbol) * (1 + 1e-12) <= exact * 1.001


def test_tightness_is_printed_as_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert norm_benchmark.main(["--tightness"]) == 0
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert len(rows) == 4
    for row in rows:
        coarse, middle, fine, padded, _ = (float(figure.strip(" |")) for figure in row[1:])
        assert 1 <= padded <= fine <= middle <= coarse
