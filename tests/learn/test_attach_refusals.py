"""What masks are not attached to, and what ends in an error."""

import functools
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn import attach_masks
from masksparse_deploy.learn.attach import Method
from tests.learn.attaching import EXAMPLE, METHODS, described, user_model
from tests.learn.networks import Zoo, shallow_net
from tests.models.tiny_cnn import tiny_cnn


def test_masks_on_masks_are_refused() -> None:
    model = tiny_cnn()
    masks = attach_masks(model, EXAMPLE)
    attached = described(model)
    with pytest.raises(UsageError, match=r"carries masks already, on block.conv1 for one; detach\(\) these first"):
        attach_masks(model, EXAMPLE)
    assert described(model) == attached
    masks.detach()


def test_weights_that_moved_are_an_error_that_names_them() -> None:
    model = tiny_cnn()
    masks = attach_masks(model, EXAMPLE)
    with torch.no_grad():
        model.fc.weight.mul_(2.0)
    message = r"fc.weight changed while masks were attached.*parameters\(\) of the attached masks, and nothing else"
    with pytest.raises(UsageError, match=message):
        masks.mask_set()
    with pytest.raises(UsageError, match=message):
        masks.detach()
    # All else is back.
    assert described(model)[1:3] == described(tiny_cnn())[1:3]
    with pytest.raises(UsageError, match=message):
        masks.mask_set()


def test_many_moved_weights_are_counted() -> None:
    model = tiny_cnn()
    message = r"conv.weight, bn.weight, bn.bias and 11 more changed"
    with pytest.raises(UsageError, match=message), attach_masks(model, EXAMPLE), torch.no_grad():
        for parameter in model.parameters():
            if not parameter.requires_grad:
                parameter.add_(1.0)


def test_an_error_of_the_training_is_not_hidden_by_moved_weights() -> None:
    model = tiny_cnn()
    with pytest.raises(ZeroDivisionError), attach_masks(model, EXAMPLE), torch.no_grad():
        model.fc.weight.mul_(2.0)
        raise ZeroDivisionError


@pytest.mark.parametrize("method", METHODS)
def test_diverged_scores_are_an_error(method: Method) -> None:
    with attach_masks(tiny_cnn(), EXAMPLE, method=method) as masks:
        with torch.no_grad():
            masks.parameters()[1].fill_(float("nan"))
        with pytest.raises(
            UsageError, match=rf"the {method} of block.conv2.weight became NaN or infinite.*lower learning rate"
        ):
            masks.masks()


def test_layers_that_cannot_carry_a_mask_are_recorded_or_refused() -> None:
    model = Zoo().eval()
    before = described(model)
    with attach_masks(model, EXAMPLE, include=["*", "hidden"]) as masks:
        reasons = {layer.name: layer.reason for layer in masks.mask_set().skipped}
    assert set(masks.selectors) == {"plain.weight", "hidden.weight"}
    assert reasons["also_tied"] == "shares its weight with tied"
    assert "parametrized" in reasons["scaled"]
    assert described(model) == before
    for name, message in (("tied", "shares its weight with also_tied"), ("scaled", "computed .parametrized.")):
        with pytest.raises(UsageError, match=rf"names {name}, which cannot carry a 2:4 mask: .*{message}"):
            attach_masks(model, EXAMPLE, include=[name])
        assert described(model) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pattern": "2:16"}, r"no layer of the network can carry a 2:16 mask .*conv1: 3 input channels"),
        ({"pattern": "5:4"}, r"pattern 5:4: N:M keeps N of M"),
        ({"include": ["conv9"]}, r"'conv9' matches no convolution or linear layer; did you mean 'conv2'"),
        ({"method": "magnitude"}, r"method 'magnitude' does not learn masks; use one of 'scores', 'gumbel'"),
        ({"example": torch.zeros(3, 8, 8)}, r"the example has the shape \(3, 8, 8\); it must be \(count, channels, height"),
        ({"example": torch.zeros(1, 1, 8, 8)}, r"layer conv1 takes 3 channels and receives 1"),
        ({"include": "conv2"}, r"include is the text 'conv2', .*; give a list: \['conv2'\]"),
        ({"exclude": "conv2"}, r"exclude is the text 'conv2'"),
    ],
)
def test_what_cannot_work_is_refused_and_changes_nothing(arguments: dict[str, object], message: str) -> None:
    model = shallow_net().train()
    before = described(model)
    with pytest.raises(UsageError, match=message):
        attach_masks(model, **{"example": EXAMPLE, **arguments})
    assert described(model) == before


def test_too_large_a_codebook_changes_nothing() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 10))
    before = described(model)
    with pytest.raises(UsageError, match="use method 'scores'"):
        attach_masks(model, EXAMPLE, pattern="8:16", method="gumbel", include=["1"])
    assert described(model) == before
    with attach_masks(model, EXAMPLE, pattern="8:16", include=["1"]) as masks:
        assert masks.mask_set().layers["1.weight"].keep.mean() == 0.5


def test_a_layer_whose_class_forbids_it_is_refused_and_the_others_restored() -> None:
    class Closed(nn.Conv2d):
        def __init_subclass__(cls) -> None:
            raise TypeError("no subclasses")

    model = user_model()
    model.block.conv2 = Closed(16, 16, 3, padding=1)
    before = described(model)
    with pytest.raises(UsageError, match=r"block\.conv2 cannot carry a mask: .*\(TypeError: no subclasses\); leave it out by"):
        attach_masks(model, EXAMPLE)
    assert described(model) == before
    with attach_masks(model, EXAMPLE, exclude=["block.conv2"]) as masks:
        assert set(masks.selectors) == {"block.conv1.weight", "block.shortcut.0.weight"}


def test_looking_at_a_spectral_norm_in_training_does_not_move_it() -> None:
    model = tiny_cnn().train()
    parametrizations.spectral_norm(model.block.conv1)
    before = described(model)
    attach_masks(model, EXAMPLE).detach()
    assert described(model) == before


@pytest.mark.parametrize(
    ("wrap", "inside"),
    [(nn.DataParallel, "module"), (functools.partial(torch.compile, backend="eager"), "_orig_mod")],
    ids=["parallel", "compiled"],
)
def test_a_wrapped_network_is_refused_as_its_names_would_not_fit(wrap: Callable[[nn.Module], nn.Module], inside: str) -> None:
    model = tiny_cnn()
    with pytest.raises(UsageError, match=rf"attach to the network inside, model\.{inside}, before"):
        attach_masks(wrap(model), EXAMPLE)
    attach_masks(model, EXAMPLE).detach()


def test_a_network_that_diverged_is_refused() -> None:
    model = tiny_cnn()
    with torch.no_grad():
        model.block.conv1.weight[0, 0, 0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"block\.conv1\.weight holds NaN or infinite values"):
        attach_masks(model, EXAMPLE)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_networks_of_other_precision_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(UsageError, match=rf"conv.weight is {dtype}, and masks are made for float32.*model.float\(\)"):
        attach_masks(tiny_cnn().to(dtype), EXAMPLE)
