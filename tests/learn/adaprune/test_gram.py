import numpy as np
import pytest
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.adaprune import gram
from masksparse_deploy.learn.adaprune.gram import gram_matrices, in_passes
from masksparse_deploy.learn.adaprune.patches import check_product, patches
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import probe_model
from tests.learn.adaprune.layers import FORMS, Standardized
from tests.learn.networks import KeywordNet, RepeatedNet
from tests.models.tiny_cnn import example_images, tiny_cnn


def survey(model: nn.Module, *names: str) -> tuple[EligibleLayer, ...]:
    pattern = NMPattern(n=2, m=4)
    return survey_layers(model, probe_model(model, (3, 8, 8)), pattern=pattern, include=("*", *names)).eligible


# Torch warns that it copies the input for "same" padding of an even kernel.
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("form", FORMS)
def test_weights_times_patches_are_the_outputs(form: str) -> None:
    module, shape = FORMS[form]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    output = module(x).detach()
    check_product(form, module, x, output)
    with pytest.raises(UsageError):
        check_product(form, module, x, output + 1e-3)


def test_a_layer_that_computes_something_else_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Standardized(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UsageError, match=r"layer 1 \(Standardized\) does not compute .* Exclude it \(mask\.exclude\)"):
        gram_matrices(model, survey(model), example_images(2), batch_size=2)


@pytest.mark.parametrize("network", [tiny_cnn, KeywordNet, RepeatedNet])
@pytest.mark.parametrize("values", [1, 2**23])
def test_the_matrices_tell_the_size_of_every_output(
    network: type[nn.Module], values: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Patches for few images at a time, and for all of a batch.
    monkeypatch.setattr(gram, "_PATCH_VALUES", values)
    model, images = network().eval(), example_images(10)
    layers = survey(model, "fc")
    before = state_fingerprint(model)
    grams = gram_matrices(model, layers, images, batch_size=4)
    assert list(grams) == [layer.name for layer in layers]
    squares = dict.fromkeys(grams, 0.0)

    def add(module: nn.Module, name: str, output: torch.Tensor) -> None:
        # Of each output channel the part without the bias.
        bias = torch.zeros(()) if module.bias is None else module.bias
        shape = (-1, 1, 1) if output.ndim == 4 else (-1,)
        squares[name] += float(((output - (bias.view(shape) if bias.ndim else bias)).double() ** 2).sum())

    hooks = [
        model.get_submodule(name).register_forward_hook(lambda m, _, output, name=name: add(m, name, output)) for name in grams
    ]
    with torch.inference_mode():
        model(torch.from_numpy(images))
    for hook in hooks:
        hook.remove()
    for name, matrix in grams.items():
        weight = model.get_submodule(name).weight.detach().double().flatten(1)
        # Float32 products of up to 144 terms: relative errors below 2 * 145 * 2**-24.
        assert float(((weight @ matrix) * weight).sum()) == pytest.approx(squares[name], rel=2e-5)
        assert torch.equal(matrix, matrix.T) or torch.allclose(matrix, matrix.T, rtol=1e-12)
    assert state_fingerprint(model) == before
    assert not any(module._forward_hooks for module in model.modules())


class OneByOne(nn.Module):
    """Calls its layers with one image at a time, without the axis that counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack([self.fc(self.conv(image).mean((1, 2))) for image in x])


def test_layers_may_be_called_with_one_image_at_a_time() -> None:
    model, images = OneByOne().eval(), example_images(3)
    shapes = {"conv": (8, 3, 3, 3), "fc": (4, 8)}
    layers = [
        EligibleLayer(
            name=name,
            weight_name=f"{name}.weight",
            shape=shape,
            weight_count=int(np.prod(shape)),
            mac_count=1,
            is_convolution=len(shape) == 4,
        )
        for name, shape in shapes.items()
    ]
    grams = gram_matrices(model, layers, images, batch_size=2)
    with torch.inference_mode():
        inputs = model.conv(torch.from_numpy(images)).mean((2, 3)).double()
    # The float32 sums of the convolution may be made in another order for several images.
    torch.testing.assert_close(grams["fc"], inputs.T @ inputs, rtol=1e-5, atol=1e-5)
    columns = patches(model.conv, torch.from_numpy(images).double())
    torch.testing.assert_close(grams["conv"], torch.einsum("nkp,nlp->kl", columns, columns))


def test_patches_of_a_linear_layer_are_its_inputs() -> None:
    x = torch.arange(24.0).reshape(2, 3, 4)
    assert torch.equal(patches(nn.Linear(4, 2), x), x.reshape(1, 6, 4).mT)


def test_a_pass_takes_neighbours_up_to_a_size() -> None:
    layers = survey(tiny_cnn())
    size_bytes = {layer.name: 8 * int(np.prod(layer.shape[1:])) ** 2 for layer in layers}
    names = [[layer.name for layer in chosen] for chosen in in_passes(layers, limit_bytes=2**30)]
    assert names == [[layer.name for layer in layers]]
    one_by_one = [[layer.name for layer in chosen] for chosen in in_passes(layers, limit_bytes=1)]
    assert one_by_one == [[name] for name in size_bytes]
    first, second, *rest = size_bytes
    two = [[layer.name for layer in c] for c in in_passes(layers, limit_bytes=size_bytes[first] + size_bytes[second])]
    assert two[0] == [first, second]
    assert [name for chosen in two for name in chosen] == [first, second, *rest]
    assert list(in_passes((), limit_bytes=1)) == []
