"""Masks of layers whose input channels are no multiple of M, by every method."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.attach import Method, attach_masks
from masksparse_deploy.learn.eligibility import survey_layers
from masksparse_deploy.learn.gumbel import GumbelSelector
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.partial import PartialSelector
from masksparse_deploy.learn.permutation.apply import permute
from masksparse_deploy.learn.permutation.find import find_permutations
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.scores import ScoreSelector

KINDS = [ScoreSelector, GumbelSelector]
PATTERN = NMPattern(n=2, m=4)
SHAPE = (3, 8, 8)


def narrow_net() -> nn.Sequential:
    """Convolutions with 3, 6 and 10 input channels, and a linear layer with 7."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 7, 1),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(7, 10),
    ).eval()


@st.composite
def weights(draw: st.DrawFn) -> tuple[NMPattern, torch.Tensor]:
    """A pattern, and a weight whose last group is not full."""
    m = draw(st.integers(2, 6))
    channels = draw(st.integers(1, 3 * m).filter(lambda count: count % m))
    seed = draw(st.integers(0, 99))
    kernel = draw(st.sampled_from([(), (3, 2)]))
    # Quarters, so that ties are common.
    quarters = torch.randint(-8, 9, (2, channels, *kernel), generator=torch.Generator().manual_seed(seed))
    return NMPattern(n=draw(st.integers(1, m)), m=m), quarters / 4


@pytest.mark.parametrize("kind", KINDS)
@given(case=weights(), seed=st.integers(0, 99))
@settings(max_examples=50, deadline=None)
def test_every_draw_is_a_mask_and_learning_starts_at_magnitude(
    kind: type[ScoreSelector] | type[GumbelSelector], case: tuple[NMPattern, torch.Tensor], seed: int
) -> None:
    pattern, weight = case
    selector = PartialSelector(kind, weight, pattern)
    assert np.array_equal(selector.harden(), pattern.keep_largest(np.abs(weight.numpy()), group_axis=1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in selector.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))
    selector.begin_step(0.5, seed)
    for keep in (selector.mask().detach().bool().numpy(), selector.harden()):
        # It checks that full groups keep N and the last one min(N, R).
        assert LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=pattern).is_partial
    assert selector.training
    assert torch.equal(selector.eval()(weight), weight * torch.from_numpy(selector.harden()))


def test_parts_draw_independently_and_reproducibly() -> None:
    selector = PartialSelector(GumbelSelector, torch.ones(64, 7), PATTERN)
    selector.begin_step(0.0, 3)
    first = selector.mask()
    selector.begin_step(0.0, 3)
    assert torch.equal(first, selector.mask())
    selector.begin_step(0.0, 4)
    again = selector.mask()
    assert not torch.equal(first[:, :4], again[:, :4])
    assert not torch.equal(first[:, 4:], again[:, 4:])


@pytest.mark.parametrize("method", ["scores", "gumbel"])
def test_masks_are_learned_where_groups_are_not_full(method: Method) -> None:
    model = narrow_net()
    images = torch.randn(16, *SHAPE, generator=torch.Generator().manual_seed(0))
    with attach_masks(model, images, method=method, include=("*", "0", "7"), pad_channels=True) as masks:
        before = masks.masks()
        optimizer = torch.optim.SGD(masks.parameters(), lr=100.0)
        masks.begin_step(0.0, 0)
        model(images).square().sum().backward()
        optimizer.step()
        after = masks.masks()
    assert list(after) == ["0.weight", "2.weight", "4.weight", "7.weight"]
    assert all(mask.is_partial for mask in after.values())
    assert any(before[name].digest != after[name].digest for name in after)


def test_reordering_channels_keeps_more_where_groups_are_not_full() -> None:
    model = narrow_net()
    # The first group holds all that matters, the second, of 2 channels, keeps everything: two large ones belong there.
    with torch.no_grad():
        model.get_parameter("2.weight")[:, 4:] *= 0.01
    layers = survey_layers(model, probe_model(model, SHAPE), pattern=PATTERN, pad_channels=True).eligible
    assert [layer.name for layer in layers] == ["2", "4"]
    found = find_permutations(model, layers, SHAPE, PATTERN, seed=0)
    permuted = permute(model, found)
    samples = Samples(np.zeros((1, *SHAPE), np.float32), np.zeros(1, np.int64))

    def kept(network: nn.Module) -> float:
        masks = Magnitude(pattern=PATTERN).sparsify(network, layers, samples).masks
        weight = network.get_parameter("2.weight").detach().abs().numpy()
        return float(weight[masks["2.weight"].keep].sum() / weight.sum())

    # Two of the large four go to the last group: of 4 large and 2 small ones all large ones stay.
    assert kept(model) < 0.8
    assert kept(permuted) > 0.97
    images = torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(1))
    # Sums of at most 90 terms in another order, in three layers: 3 * 90 * 2^-24 = 1.6e-5 of outputs below 1.
    torch.testing.assert_close(permuted(images), model(images), rtol=0, atol=2e-5)
