"""The real proof of the analysis: any order of channels inside the segments leaves the function of a network unchanged."""

import functools

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.learn.permutation import operators
from masksparse_deploy.learn.permutation.apply import check_unchanged, permute
from masksparse_deploy.learn.permutation.arrange import arrange_channels
from masksparse_deploy.learn.permutation.layout import Arrangement, orders
from tests.learn.permutation.networks import NETWORKS, image_shape, network


@functools.cache
def analysed(name: str) -> tuple[nn.Module, Arrangement]:
    model = network(name)
    return model, arrange_channels(model, image_shape(name))


def random_orders(arrangement: Arrangement, seed: int) -> tuple[AxisPermutation, ...]:
    generator = np.random.default_rng(seed)
    sources = np.arange(arrangement.channel_count)
    for segment in arrangement.segments:
        sources[segment] = generator.permutation(segment)
    return orders(arrangement, sources)


def images(name: str, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((2, *image_shape(name)), dtype=np.float32)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_channels_that_may_move_are_found(name: str) -> None:
    _, arrangement = analysed(name)
    assert tuple(sorted((len(segment) for segment in arrangement.segments), reverse=True)) == NETWORKS[name][1]


@pytest.mark.parametrize("name", NETWORKS)
@settings(max_examples=3, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_any_order_inside_the_segments_leaves_the_function_unchanged(name: str, seed: int) -> None:
    model, arrangement = analysed(name)
    check_unchanged(model, permute(model, random_orders(arrangement, seed)), images(name, seed))


@pytest.mark.parametrize("name", ["tiny", "concat", "excite", "flatten", "channels last", "tokens", "resized", "mobile"])
def test_one_parameter_left_in_its_old_order_is_caught(name: str) -> None:
    model, arrangement = analysed(name)
    permutations = random_orders(arrangement, 1)
    assert permutations
    for index, left_out in enumerate(permutations):
        partly = permute(model, permutations[:index] + permutations[index + 1 :])
        with pytest.raises(UsageError, match="changed the outputs"):
            check_unchanged(model, partly, images(name))
            pytest.fail(f"{left_out.key} in its old order was not noticed")


@pytest.mark.parametrize(
    ("name", "operator", "rule"),
    [("running", "cumsum", "_unary"), ("fixed", "mul", "_unary"), ("normalised", "group_norm", "_per_channel")],
)
def test_a_wrong_rule_is_caught(name: str, operator: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(operators._RULES, operator, getattr(operators, rule))
    model = network(name)
    arrangement = arrange_channels(model, image_shape(name))
    with pytest.raises(UsageError, match="changed the outputs"):
        check_unchanged(model, permute(model, random_orders(arrangement, 1)), images(name))


def test_groups_that_are_overlooked_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "_keep_apart", lambda *_: None)
    model = network("grouped")
    arrangement = arrange_channels(model, image_shape("grouped"))
    with pytest.raises(UsageError, match="changed the outputs"):
        check_unchanged(model, permute(model, random_orders(arrangement, 1)), images("grouped"))


def test_a_network_that_cannot_be_traced_is_a_usage_error() -> None:
    class Branching(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if float(x.sum()) > 0 else -x

    with pytest.raises(UsageError, match=r"torch\.export cannot trace .*\(3, 8, 8\).*mask\.permute: false"):
        arrange_channels(Branching().eval(), (3, 8, 8))


def test_a_network_is_not_changed_by_the_analysis() -> None:
    model = network("tiny")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    arrange_channels(model, image_shape("tiny"))
    assert not model.training
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
