"""What does not fit is refused, and a network that changed is noticed."""

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.learn.permutation.apply import check_unchanged, permute
from tests.models.tiny_cnn import example_images, tiny_cnn


def permutation(name: str = "block.conv1.weight", axis: int = 0, length: int = 16) -> AxisPermutation:
    return AxisPermutation(name=name, axis=axis, order=np.arange(length)[::-1].astype(np.int64))


def test_parameters_and_buffers_take_the_new_order_and_the_original_stays() -> None:
    model = tiny_cnn()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    permuted = permute(model, [permutation(), permutation(axis=1, length=8), permutation("block.bn1.running_mean")])
    assert permuted is not model
    state = permuted.state_dict()
    torch.testing.assert_close(state["block.conv1.weight"], before["block.conv1.weight"].flip(0, 1), rtol=0, atol=0)
    torch.testing.assert_close(state["block.bn1.running_mean"], before["block.bn1.running_mean"].flip(0), rtol=0, atol=0)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)
    for name in before.keys() - {"block.conv1.weight", "block.bn1.running_mean"}:
        torch.testing.assert_close(state[name], before[name], rtol=0, atol=0)


def test_tied_weights_take_the_new_order_once() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    model[1].weight = model[0].weight
    permuted = permute(model, [permutation("0.weight", 0, 4)])
    assert permuted[1].weight is permuted[0].weight
    torch.testing.assert_close(permuted[0].weight, model[0].weight.flip(0), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (permutation("block.conv9.weight"), "block.conv9.weight, axis 0: the network has no tensor of that name"),
        (permutation(axis=4), r"axis 4: it orders 16 channels, and .* shape \(16, 8, 3, 3\)"),
        (permutation(length=8), "axis 0: it orders 8 channels"),
    ],
)
def test_a_permutation_of_another_network_is_refused(wrong: AxisPermutation, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        permute(tiny_cnn(), [wrong])


def test_a_network_that_cannot_be_copied_is_a_usage_error() -> None:
    class Single(nn.Identity):
        def __deepcopy__(self, memo: object) -> "Single":
            raise TypeError("only one")

    with pytest.raises(UsageError, match=r"TypeError: only one; set mask\.permute: false"):
        permute(Single(), [])


def test_one_producer_in_its_old_order_is_noticed() -> None:
    inner = [permutation(f"block.bn1.{name}") for name in ("weight", "bias", "running_mean", "running_var")]
    inner += [permutation(), permutation("block.conv2.weight", axis=1)]
    model, images = tiny_cnn(), example_images()
    check_unchanged(model, permute(model, inner), images)
    with pytest.raises(UsageError, match=r"changed the outputs of the network by .*; rounding explains at most"):
        check_unchanged(model, permute(model, inner[1:]), images)


def test_a_change_in_the_fifth_digit_is_noticed() -> None:
    model, images = tiny_cnn(), example_images()
    changed = permute(model, [])
    check_unchanged(model, changed, images)
    with torch.no_grad():
        changed.get_parameter("fc.bias")[0] += 1e-5
    with pytest.raises(UsageError, match="changed the outputs"):
        check_unchanged(model, changed, images)


def test_outputs_that_are_not_numbers_do_not_pass() -> None:
    model = tiny_cnn()
    with torch.no_grad():
        model.fc.bias[0] = torch.nan
    with pytest.raises(UsageError, match="by nan"):
        check_unchanged(model, permute(model, []), example_images())


def test_a_network_of_fixed_precision_cannot_be_checked() -> None:
    class Fixed(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x.float())

    with pytest.raises(UsageError, match=r"cannot be checked: evaluating it in torch\.float64"):
        check_unchanged(Fixed(4, 2), Fixed(4, 2), np.ones((2, 4), np.float32))
