import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.dynamic.masked_weight import MaskedWeight


def test_both_passes_use_the_same_mask_and_the_weight_gets_the_dense_gradient() -> None:
    generator = np.random.default_rng(0)
    weight, inputs, of_outputs = (generator.standard_normal(shape).astype(np.float32) for shape in ((8, 12), (5, 12), (5, 8)))
    keep = choose_mask(np.abs(weight), NMPattern.parse("T2:4"), "exact")
    layer = nn.Linear(12, 8, bias=False)
    with torch.no_grad():
        layer.weight.copy_(torch.from_numpy(weight))
    parametrize.register_parametrization(layer, "weight", MaskedWeight(layer.weight.detach(), keep), unsafe=True)
    given = torch.from_numpy(inputs).requires_grad_()
    outputs = layer(given)
    outputs.backward(torch.from_numpy(of_outputs))

    # Sums of at most 12 products of size one in float32: a few dozen units of 6e-8.
    assert np.allclose(outputs.detach().numpy(), inputs @ (keep * weight).T, atol=1e-5)
    assert given.grad is not None
    assert np.allclose(given.grad.numpy(), of_outputs @ (keep * weight), atol=1e-5)
    assert not np.allclose(given.grad.numpy(), of_outputs @ weight, atol=0.1)
    found = layer.get_parameter("parametrizations.weight.original").grad
    assert found is not None
    assert np.allclose(found.numpy(), of_outputs.T @ inputs, atol=1e-5)
    assert (np.abs(found.numpy()[~keep]) > 1e-3).all()


def test_another_mask_takes_effect_at_once() -> None:
    masked = MaskedWeight(torch.ones(4, 4), np.eye(4, dtype=np.bool_))
    assert torch.equal(masked(torch.full((4, 4), 3.0)), 3 * torch.eye(4))
    masked.set(~np.eye(4, dtype=np.bool_))
    assert torch.equal(masked(torch.full((4, 4), 3.0)), 3 * (1 - torch.eye(4)))
    assert np.array_equal(masked.kept(), ~np.eye(4, dtype=np.bool_))
