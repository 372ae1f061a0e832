"""The search keeps more magnitude, never less, and ends where no single exchange brings more."""

import itertools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import silent
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.permutation.apply import check_unchanged, permute
from masksparse_deploy.learn.permutation.find import find_permutations
from masksparse_deploy.learn.permutation.layout import Arrangement, ParameterAxis, new_positions
from masksparse_deploy.learn.permutation.search import (
    _LARGEST_SWEEPS,
    _SMALLEST_GAIN,
    Consumer,
    _Tournament,
    kept_share,
    search_orders,
)
from masksparse_deploy.learn.probe import probe_model
from tests.learn.permutation.networks import image_shape, network

PATTERN = NMPattern(n=2, m=4)
PATTERNS = [NMPattern(n=1, m=2), PATTERN, NMPattern(n=1, m=4), NMPattern(n=3, m=4), NMPattern(n=3, m=8)]


def consumer(magnitude: npt.NDArray[np.float64], channels: npt.NDArray[np.int64] | None = None) -> Consumer:
    """A layer that reads the given channels, all of them in order unless told otherwise."""
    read = np.arange(len(magnitude)) if channels is None else channels
    return Consumer(
        axis=ParameterAxis(name="w", axis=1, channels=read, copies=np.zeros_like(read)),
        magnitude=torch.from_numpy((magnitude / magnitude.sum()).astype(np.float32)),
    )


def one_segment(count: int) -> Arrangement:
    return Arrangement(channel_count=count, axes=(), segments=(np.arange(count),))


def random_magnitude(seed: int, count: int, width: int = 6) -> npt.NDArray[np.float64]:
    """Whole numbers, so that many are equal."""
    return np.random.default_rng(seed).integers(0, 5, (count, width)) + 0.125


def exchanged(count: int, one: int, other: int) -> npt.NDArray[np.int64]:
    sources = np.arange(count)
    sources[[one, other]] = other, one
    return sources


def test_large_channels_are_spread_over_the_groups() -> None:
    # In order, the first group loses two of its four large channels; spread, two and two, nothing is lost.
    magnitude = np.repeat([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0], 3).reshape(8, 3)
    found = search_orders(one_segment(8), [consumer(magnitude)], PATTERN, seed=0, progress=silent)
    assert kept_share(consumer(magnitude), PATTERN, np.arange(8)) == pytest.approx(0.5)
    assert kept_share(consumer(magnitude), PATTERN, found) == pytest.approx(1.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pattern=st.sampled_from(PATTERNS))
def test_a_gain_is_what_the_exchange_brings(seed: int, pattern: NMPattern) -> None:
    count = 2 * pattern.m
    layer = consumer(random_magnitude(seed, count))
    cells = tuple(tuple(range(first, first + pattern.m)) for first in (0, pattern.m))
    tournament = _Tournament(cells, [layer], pattern)
    left, right = torch.tensor([0]), torch.tensor([1])
    gains = (tournament._gains(left, right) + tournament._gains(right, left).transpose(1, 2))[0]
    before = kept_share(layer, pattern, np.arange(count))
    for one, other in itertools.product(range(pattern.m), range(pattern.m)):
        after = kept_share(layer, pattern, exchanged(count, one, pattern.m + other))
        # Sums of at most 96 shares, of 1 in total, in float32: 96 * 2^-24 = 6e-6.
        assert float(gains[one, other]) == pytest.approx(after - before, abs=6e-6)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 1000), pattern=st.sampled_from(PATTERNS), groups=st.integers(2, 5))
def test_it_ends_where_no_exchange_brings_more(seed: int, pattern: NMPattern, groups: int) -> None:
    count = groups * pattern.m
    layers = [consumer(random_magnitude(seed + 1, count)), consumer(random_magnitude(seed + 2, count, width=3))]
    cells = tuple(tuple(range(first, first + pattern.m)) for first in range(0, count, pattern.m))
    generator = np.random.default_rng(seed)
    tournament = _Tournament(cells, layers, pattern)
    sweeps = 0
    while tournament.sweep(generator):
        sweeps += 1
        assert sweeps < _LARGEST_SWEEPS
    places, channels = tournament.exchanged()
    order = np.empty(count, np.int64)
    order[places] = channels
    reached = sum(kept_share(layer, pattern, order) for layer in layers)
    for one, other in itertools.combinations(range(count), 2):
        swapped = order.copy()
        swapped[[one, other]] = order[[other, one]]
        # The smallest gain that is taken, of a channel's mean share of two layers, and rounding as for a single gain.
        assert sum(kept_share(layer, pattern, swapped) for layer in layers) <= reached + _SMALLEST_GAIN * 2 / count + 6e-6


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 1000), pattern=st.sampled_from([*PATTERNS, NMPattern(n=2, m=2)]))
def test_it_never_ends_below_the_order_it_began_with(seed: int, pattern: NMPattern) -> None:
    """Layers that group the channels alike and not alike, with channels of others in between, and fixed ones."""
    generator = np.random.default_rng(seed)
    count = 4 * pattern.m
    shifted = np.roll(np.arange(count), int(generator.integers(count)))
    layers = [
        consumer(random_magnitude(seed, count)),
        consumer(random_magnitude(seed + 1, count), shifted),
        consumer(random_magnitude(seed + 2, count), generator.permutation(count)),
    ]
    cut = int(generator.integers(1, count - 1))
    arrangement = Arrangement(channel_count=count, axes=(), segments=(np.arange(cut), np.arange(cut, count - 1)))
    sources = search_orders(arrangement, layers, pattern, seed=seed, progress=silent)
    before, after = (sum(kept_share(layer, pattern, order) for layer in layers) for order in (np.arange(count), sources))
    assert after >= before
    for segment in arrangement.segments:
        assert sorted(sources[segment].tolist()) == segment.tolist()
    assert sources[-1] == count - 1


def test_an_order_that_a_neglected_layer_loses_by_is_not_taken() -> None:
    # Two layers group the channels in one way and have little to gain; the third, in another way, is at its best as it is.
    generator = np.random.default_rng(0)
    little = consumer(1 + 0.01 * generator.random((16, 3)))
    groups = np.arange(16).reshape(4, 4).T.flatten()
    much = consumer(generator.random((16, 3)), groups)
    best = search_orders(one_segment(16), [much], PATTERN, seed=0, progress=silent)
    much = consumer(much.magnitude.double().numpy()[new_positions(much.axis, best)], groups)
    tempted = search_orders(one_segment(16), [little, little], PATTERN, seed=0, progress=silent)
    assert kept_share(much, PATTERN, tempted) < kept_share(much, PATTERN, np.arange(16)) - 0.01
    sources = search_orders(one_segment(16), [little, little, much], PATTERN, seed=0, progress=silent)
    np.testing.assert_array_equal(sources, np.arange(16))


def eligible(model: nn.Module, shape: tuple[int, int, int], *, include: tuple[str, ...] = ("*",)) -> tuple[EligibleLayer, ...]:
    return survey_layers(model, probe_model(model, shape), pattern=PATTERN, include=include).eligible


def kept(model: nn.Module, layers: tuple[EligibleLayer, ...]) -> float:
    total = 0.0
    for layer in layers:
        magnitude = model.get_parameter(layer.weight_name).abs().double().numpy()
        total += float(magnitude[PATTERN.keep_largest(magnitude, group_axis=1)].sum() / magnitude.sum())
    return total


@pytest.mark.parametrize(("name", "include"), [("digits", "classifier"), ("concat", "head"), ("flatten", "hidden")])
def test_a_network_keeps_more(name: str, include: str) -> None:
    model, shape = network(name), image_shape(name)
    layers = eligible(model, shape, include=("*", include))
    permutations = find_permutations(model, layers, shape, PATTERN, seed=0)
    again = find_permutations(model, layers, shape, PATTERN, seed=0)
    assert [(p.key, p.order.tolist()) for p in permutations] == [(p.key, p.order.tolist()) for p in again]
    permuted = permute(model, permutations)
    assert kept(permuted, layers) > kept(model, layers)
    images = np.random.default_rng(0).standard_normal((2, *shape), dtype=np.float32)
    check_unchanged(model, permuted, images)


def test_where_nothing_is_masked_or_everything_kept_there_is_nothing_to_do() -> None:
    model, shape = network("tiny"), image_shape("tiny")
    assert find_permutations(model, (), shape, PATTERN, seed=0) == ()
    assert find_permutations(model, eligible(model, shape), shape, NMPattern(n=4, m=4), seed=0) == ()


def test_a_layer_of_zeros_is_left_in_order() -> None:
    model, shape = network("tiny"), image_shape("tiny")
    layers = eligible(model, shape)
    for layer in layers:
        model.get_parameter(layer.weight_name).zero_()
    assert find_permutations(model, layers, shape, PATTERN, seed=0) == ()
