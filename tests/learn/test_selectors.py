"""What holds for every selector."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.gumbel import GumbelSelector
from masksparse_deploy.learn.scores import ScoreSelector
from masksparse_deploy.learn.selector import Selector

SELECTORS = [ScoreSelector, GumbelSelector]


@st.composite
def weights(draw: st.DrawFn, largest_codebook: int = 256) -> tuple[NMPattern, torch.Tensor]:
    """A pattern with M up to 16, and the weight of a linear layer or a convolution."""
    m = draw(st.integers(1, 16))
    n = draw(st.integers(1, m).filter(lambda n: math.comb(m, n) <= largest_codebook))
    kernel = draw(st.sampled_from([(), (1, 1), (3, 2)]))
    shape = (draw(st.integers(1, 3)), m * draw(st.integers(1, 2)), *kernel)
    # Few distinct values, so that ties are common.
    array = draw(hnp.arrays(np.float32, shape, elements=st.sampled_from([-2.0, -1.0, -0.0, 0.5, 1.0, 4.0])))
    return NMPattern(n=n, m=m), torch.from_numpy(array)


def kept_counts(mask: np.ndarray, m: int) -> np.ndarray:
    """How many of each group are kept, counted without the code under test."""
    return mask.reshape(mask.shape[0], -1, m, *mask.shape[2:]).sum(2)


def disturb(selector: Selector, seed: int) -> None:
    """Move the parameters as a training step might, in quarters, so that ties stay common."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.add_(torch.randint(-4, 5, parameter.shape, generator=generator) / 4)


@pytest.mark.parametrize("kind", SELECTORS)
@given(case=weights(), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_exactly_n_of_m_and_evaluation_computes_with_the_hardened_mask(
    kind: type[ScoreSelector] | type[GumbelSelector], case: tuple[NMPattern, torch.Tensor], seed: int
) -> None:
    pattern, weight = case
    selector = kind(weight, pattern)
    disturb(selector, seed)
    selector.begin_step(0.5, seed)
    for _ in range(3):
        drawn = selector.mask().detach().numpy()
        assert drawn.shape == weight.shape
        assert set(np.unique(drawn)) <= {0.0, 1.0}
        assert (kept_counts(drawn, pattern.m) == pattern.n).all()
    keep = selector.harden()
    assert selector.training
    assert (kept_counts(keep, pattern.m) == pattern.n).all()
    selector.eval()
    for _ in range(2):
        assert torch.equal(selector(weight), weight * torch.from_numpy(keep))


@pytest.mark.parametrize("kind", SELECTORS)
@given(case=weights())
@settings(max_examples=50, deadline=None)
def test_learning_starts_at_magnitude_masks_ties_included(
    kind: type[ScoreSelector] | type[GumbelSelector], case: tuple[NMPattern, torch.Tensor]
) -> None:
    pattern, weight = case
    assert np.array_equal(kind(weight, pattern).harden(), pattern.keep_largest(np.abs(weight.numpy()), group_axis=1))


@given(case=weights(largest_codebook=math.comb(16, 8)), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_scores_are_hardened_as_the_pattern_keeps_the_largest(case: tuple[NMPattern, torch.Tensor], seed: int) -> None:
    pattern, weight = case
    selector = ScoreSelector(weight, pattern)
    disturb(selector, seed)
    expected = pattern.keep_largest(selector.scores.detach().numpy(), group_axis=1)
    assert np.array_equal(selector.harden(), expected)


@pytest.mark.parametrize("kind", SELECTORS)
@pytest.mark.parametrize("layer", [nn.Linear(16, 6), nn.Conv2d(16, 6, 3)], ids=["linear", "convolution"])
@pytest.mark.parametrize("training", [True, False])
def test_a_gradient_reaches_every_parameter(
    kind: type[ScoreSelector] | type[GumbelSelector], layer: nn.Module, training: bool
) -> None:
    weight = layer.get_parameter("weight")
    selector = kind(weight, NMPattern(n=2, m=4)).train(training)
    # Random factors, so that no two rows of a group meet the same gradient by chance.
    (selector(weight.detach()) * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for parameter in selector.parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).all())


def test_the_gradient_of_a_score_is_that_of_its_weight_if_it_were_kept() -> None:
    weight = torch.randn(4, 8, 3, 3, generator=torch.Generator().manual_seed(0))
    factors = torch.arange(weight.numel(), dtype=torch.float32).reshape(weight.shape)
    selector = ScoreSelector(weight, NMPattern(n=1, m=8))
    (selector(weight) * factors).sum().backward()
    assert selector.scores.grad is not None
    assert torch.equal(selector.scores.grad, weight * factors)


@pytest.mark.parametrize("kind", SELECTORS)
def test_a_layer_computes_with_the_mask_of_its_selector(kind: type[ScoreSelector] | type[GumbelSelector]) -> None:
    layer = nn.Conv2d(8, 4, 3).eval()
    weight = layer.weight.detach().clone()
    selector = kind(weight, NMPattern(n=2, m=4))
    parametrize.register_parametrization(layer, "weight", selector.eval())
    assert torch.equal(layer.weight, weight * torch.from_numpy(selector.harden()))


class Greedy(Selector):
    """A planted fault: keeps everything."""

    def mask(self) -> torch.Tensor:
        return torch.ones(4, 8)


def test_a_selector_that_keeps_too_many_is_caught() -> None:
    selector = Greedy(NMPattern(n=2, m=4))
    keep = selector.harden()
    assert (kept_counts(keep, 4) != 2).all()
    with pytest.raises(ArtifactError, match="8 of 8 groups do not keep exactly 2 of 4"):
        LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=selector.pattern)
