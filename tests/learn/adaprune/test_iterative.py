import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.adaprune.iterative import absorbed, descend, inputs_of
from tests.learn.networks import RepeatedNet, shallow_net
from tests.models.tiny_cnn import example_images


def test_what_a_group_drops_is_shared_out_among_what_it_keeps() -> None:
    weight = np.float32([[5.0, 1.0, -4.0, 2.0, 3.0, 0.5]])
    keep = np.array([[True, False, True, False, True, True]])
    mask = LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=NMPattern(n=2, m=4))
    # The first group drops 1 + 2, the second, which is not full, nothing.
    np.testing.assert_array_equal(absorbed(weight, mask), np.float32([[6.5, 0.0, -2.5, 0.0, 3.0, 0.5]]))


def test_the_sums_of_all_groups_stay() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 8, 3, 3)).astype(np.float32)
    pattern = NMPattern(n=2, m=4)
    keep = pattern.keep_largest(np.abs(weight), group_axis=1)
    start = absorbed(weight, LayerMask(weight_name="w", keep=keep, group_axis=1, pattern=pattern))
    assert not start[~keep].any()
    # Sums of four float32 values of about 1: a few units of 2**-24.
    np.testing.assert_allclose(*(w.reshape(6, 2, 4, 3, 3).sum(2) for w in (start, weight)), atol=2e-6)


def test_the_inputs_of_one_layer_are_cached_one_by_one() -> None:
    model, images = shallow_net(), example_images(10)
    cached = inputs_of(model, "conv2", images, batch_size=4)
    with torch.inference_mode():
        expected = torch.relu(model.conv1(torch.from_numpy(images)))
    assert [x.shape for x in cached] == [(8, 8, 8)] * 10
    # Batches of 4 and of 10 may be summed in another order.
    torch.testing.assert_close(torch.stack(cached), expected)
    assert not model.conv2._forward_hooks
    assert len(inputs_of(RepeatedNet().eval(), "conv2", images, batch_size=4)) == 30


class InPlace(nn.Module):
    """Overwrites what the convolution received."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + 1
        y = self.conv(x)
        x.zero_()
        return y.mean((2, 3))


def test_what_the_network_overwrites_later_is_cached_as_it_was() -> None:
    images = example_images(2)
    cached = inputs_of(InPlace(), "conv", images, batch_size=2)
    np.testing.assert_array_equal(torch.stack(cached).numpy(), images + 1)


class TwoSizes(nn.Module):
    """One convolution for images of two sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3)) + self.conv(x[:, :, ::2]).mean((2, 3))


def test_inputs_of_several_shapes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"shapes \(3, 4, 8\), \(3, 8, 8\); .* use mask\.reconstruction: closed-form"):
        inputs_of(TwoSizes(), "conv", example_images(2), batch_size=2)


def test_the_same_seed_gives_the_same_weights() -> None:
    model = shallow_net()
    inputs = inputs_of(model, "conv2", example_images(80), batch_size=40)
    keep = torch.rand(model.conv2.weight.shape, generator=torch.Generator().manual_seed(0)) < 0.5
    start = model.conv2.weight.detach() * keep
    first, again, other = (descend(model.conv2, start, keep, inputs, steps=3, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not first[~keep].any()
    assert torch.equal(start, model.conv2.weight.detach() * keep)
