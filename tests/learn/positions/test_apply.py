import copy

import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.learn.batch_norm import reestimate
from masksparse_deploy.learn.evaluation import compute_logits
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sparsifier import Given, Outcome
from tests.learn.learning import TRAIN
from tests.learn.networks import shallow_net
from tests.models.tiny_cnn import example_images, tiny_cnn

KEEP = np.random.default_rng(3).random((4, 4)) > 0.4


def masks(*layers: str, keep: np.ndarray = KEEP) -> dict[str, PositionMask]:
    return {layer: PositionMask(layer=layer, keep=keep) for layer in layers}


def outputs(model: nn.Module, layer: str) -> torch.Tensor:
    seen: list[torch.Tensor] = []
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model(torch.from_numpy(example_images(3)))
    handle.remove()
    return seen[0]


def test_dropped_positions_hold_nothing_without_a_bias() -> None:
    model = tiny_cnn()
    dense = outputs(model, "block.conv1")
    with masked_positions(model, masks("block.conv1")):
        masked = outputs(model, "block.conv1")
    keep = torch.from_numpy(KEEP)
    assert torch.equal(masked[:, :, keep], dense[:, :, keep])
    assert not masked[:, :, ~keep].any()
    assert torch.equal(outputs(model, "block.conv1"), dense)


def test_dropped_positions_hold_the_bias() -> None:
    model, keep = shallow_net(), np.ones((8, 8), dtype=np.bool_)
    keep[2:5, 1] = False
    dense = outputs(model, "conv2")
    with masked_positions(model, masks("conv2", keep=keep)):
        masked = outputs(model, "conv2")
    kept = torch.from_numpy(keep)
    assert torch.equal(masked[:, :, kept], dense[:, :, kept])
    assert torch.equal(masked[:, :, ~kept], model.conv2.bias.detach()[None, :, None].expand(3, -1, 3))


def test_the_gradient_of_dropped_positions_goes_to_the_bias_alone() -> None:
    model, keep = shallow_net().requires_grad_(True), np.zeros((8, 8), dtype=np.bool_)
    keep[0, 0] = True
    with masked_positions(model, masks("conv2", keep=keep)):
        output = model.conv2(torch.randn(2, 8, 8, 8))
    output[:, :, 1:].sum().backward()
    assert not model.conv2.weight.grad.any()
    # Of 2 images, 7 rows of 8.
    assert torch.equal(model.conv2.bias.grad, torch.full((8,), 2.0 * 7 * 8))


def test_copies_keep_the_masks_and_masks_go_even_after_an_error() -> None:
    model = tiny_cnn()
    dense = compute_logits(model, TRAIN, batch_size=32)
    with pytest.raises(KeyError), masked_positions(model, masks("block.conv1")):
        masked = copy.deepcopy(model)
        raise KeyError
    assert np.array_equal(compute_logits(model, TRAIN, batch_size=32), dense)
    assert not np.allclose(compute_logits(masked, TRAIN, batch_size=32), dense)


def test_reestimated_statistics_have_the_zeros_in_them() -> None:
    model, images = tiny_cnn(), example_images(6)
    with masked_positions(model, masks("block.conv1")):
        found = reestimate(model, {}, images, batch_size=6)
    # By hand: batch norm of the stem in training, the convolution, zeros at dropped positions, moments over all positions.
    with torch.no_grad():
        stem = model.conv(torch.from_numpy(images))
        mean, variance = stem.mean((0, 2, 3)), stem.var((0, 2, 3), unbiased=False)
        normal = (stem - mean[:, None, None]) / (variance[:, None, None] + model.bn.eps).sqrt()
        stem = torch.relu(normal * model.bn.weight[:, None, None] + model.bn.bias[:, None, None])
        output = model.block.conv1(stem) * torch.from_numpy(KEEP)
    # Sums of some hundred float32 values of size 1.
    assert found["block.bn1.running_mean"] == pytest.approx(output.mean((0, 2, 3)).numpy(), abs=1e-5)
    assert found["block.bn1.running_var"] == pytest.approx(output.var((0, 2, 3)).numpy(), rel=1e-4)
    # Far more than that tolerance, so that dense statistics would be seen.
    dense = reestimate(model, {}, images, batch_size=6)
    assert np.abs(dense["block.bn1.running_var"] / found["block.bn1.running_var"] - 1).min() > 0.01


def test_statistics_that_are_estimated_after_training_have_them_too() -> None:
    """As mask.recalibrate asks for, whichever method found the masks."""
    options = {"calibration_count": 96, "batch_size": 32, "augment": "none", "seed": 0}
    masked, dense = (
        Reestimated(inner=Given(outcome=Outcome(masks={}, positions=positions)), **options)  # type: ignore[arg-type]
        .sparsify(tiny_cnn(), (), TRAIN)
        .statistics
        for positions in (masks("block.conv1"), {})
    )
    model, order = tiny_cnn(), np.random.default_rng(0).permutation(96)
    with masked_positions(model, masks("block.conv1")):
        expected = reestimate(model, {}, TRAIN.images[order], batch_size=32)
    assert all(np.array_equal(masked[name], array) for name, array in expected.items())
    assert not np.allclose(masked["block.bn1.running_var"], dense["block.bn1.running_var"], rtol=0.01)


def test_images_of_another_size_are_refused() -> None:
    model = tiny_cnn()
    message = (
        "the output of block.conv1 is 3 x 5 and its position mask 4 x 4; masks of positions are for one size of images: use "
        "images of the size that they were learned with, or learn them again"
    )
    with masked_positions(model, masks("block.conv1")), pytest.raises(UsageError) as caught:
        model(torch.zeros(1, 3, 6, 10))
    assert str(caught.value) == message


@pytest.mark.parametrize(("layer", "found"), [("block.conv9", "no such layer"), ("fc", "a Linear there")])
def test_masks_of_another_network_are_refused(layer: str, found: str) -> None:
    message = f"positions of '{layer}', a 2-d convolution, and the network has {found}; model.factory must build"
    with pytest.raises(UsageError, match=message), masked_positions(tiny_cnn(), masks("block.conv1", layer)):
        pass
