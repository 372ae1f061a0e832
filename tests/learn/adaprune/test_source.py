from math import comb

import numpy as np
import pytest
import torch

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.adaprune import choose_kept, pattern_for_source
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.probe import probe_model
from tests.models.tiny_cnn import TinyCnn, tiny_cnn
from tests.requirements import REPOSITORY


def by_enumeration(p: float, m: int, confidence: float) -> int:
    """M minus the largest k for which at least k of M weights are zero with more than this probability."""
    most = 0
    for k in range(1, m):
        if sum(comb(m, i) * p**i * (1 - p) ** (m - i) for i in range(k, m + 1)) > confidence:
            most = k
    return m - most


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.95])
@pytest.mark.parametrize("m", [1, 4, 8, 16])
def test_the_tail_of_the_binomial_distribution_decides(m: int, confidence: float) -> None:
    for p in np.linspace(0, 1, 41)[1:-1]:
        assert choose_kept(float(p), m, confidence=confidence) == by_enumeration(float(p), m, confidence)


def test_examples() -> None:
    # P(B(8, 0.7) >= 4) = 0.942, P(B(8, 0.7) >= 3) = 0.989
    assert choose_kept(0.7, 8) == 5
    assert choose_kept(0.7, 8, confidence=0.94) == 4
    assert choose_kept(0.0, 8) == 8
    assert choose_kept(1.0, 8) == 1


def test_the_table_of_the_page_is_what_is_chosen() -> None:
    page = (REPOSITORY / "docs" / "adaprune.md").read_text(encoding="utf-8")
    head, *rows = (
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith(("| zeros", "| auto"))
    )
    assert len(rows) == 3
    for name, *patterns in rows:
        m = int(name.removeprefix("auto:"))
        kept = [choose_kept(float(cell.rstrip(" %")) / 100, m) for cell in head[1:]]
        assert patterns == ["dense" if n == m else f"{n}:{m}" for n in kept]


def emptied(fractions: tuple[float, ...]) -> tuple[TinyCnn, tuple[EligibleLayer, ...]]:
    model = tiny_cnn()
    layers = survey_layers(model, probe_model(model, (3, 8, 8)), pattern=NMPattern(n=1, m=8)).eligible
    generator = np.random.default_rng(0)
    for layer, fraction in zip(layers, fractions, strict=True):
        weight = model.get_parameter(layer.weight_name)
        with torch.no_grad():
            weight[torch.from_numpy(generator.random(layer.shape) < fraction)] = 0
    return model, layers


def test_so_many_groups_lose_nothing_but_zeros() -> None:
    model, layers = emptied((0.75, 0.75, 0.75))
    pattern = pattern_for_source(model, layers, 8)
    assert pattern == NMPattern(n=choose_kept(0.75, 8), m=8)
    fitting = []
    for layer in layers:
        groups = (model.get_parameter(layer.weight_name).detach() != 0).unflatten(1, (-1, 8)).sum(2)
        fitting.append((groups <= pattern.n).flatten())
    # P(B(8, 0.75) >= 4) = 0.973; 448 groups of random zeros: standard deviation 0.008.
    assert 0.94 <= float(torch.cat(fitting).float().mean()) <= 1.0


def test_layers_count_by_their_groups() -> None:
    # The last layer, a shortcut, has a twentieth of the groups: its many zeros do not outweigh the others.
    model, layers = emptied((0.75, 0.75, 0.0))
    assert [layer.name for layer in layers] == ["block.conv1", "block.conv2", "block.shortcut.0"]
    mixed = pattern_for_source(model, layers, 8, confidence=0.9)
    assert mixed == NMPattern(n=4, m=8)
    # Counted one by one, the dense layer would ask for all.
    assert choose_kept(0.0, 8) == 8
    with pytest.raises(UsageError):
        pattern_for_source(model, layers[2:], 8)


def test_a_dense_source_is_refused() -> None:
    model, layers = emptied((0.0, 0.0, 0.0))
    with pytest.raises(UsageError, match=r"mask\.pattern auto:8: 0\.0% of the weights.*for example 4:8"):
        pattern_for_source(model, layers, 8)
