import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.choose_mask import choose_mask
from masksparse_deploy.learn.dynamic.masked_weight import MaskedWeight
from masksparse_deploy.learn.dynamic.semi_structured import Gpu, Pack, current_gpu, kernel_obstacle, use_sparse_products
from tests.requirements import requires

AMPERE, HOPPER = Gpu(major=8, has_cusparselt=False), Gpu(major=9, has_cusparselt=True)
HALF = torch.float16


def convolution(*arguments: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(*arguments, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layer", "text", "dtype", "gpu"),
    [
        (nn.Linear(128, 64), "T2:4", HALF, AMPERE),
        (convolution(64, 192, 1, stride=2), "2:4", torch.bfloat16, HOPPER),
        (convolution(64, 64, 1, padding="same"), "2:4", torch.bfloat16, HOPPER),
    ],
)
def test_layers_with_kernels(layer: nn.Module, text: str, dtype: torch.dtype, gpu: Gpu) -> None:
    assert kernel_obstacle(layer, NMPattern.parse(text), dtype, gpu) is None


@pytest.mark.parametrize(
    ("layer", "text", "dtype", "gpu", "reason"),
    [
        (nn.Linear(64, 64), "2:4", HALF, None, "there is no GPU"),
        (nn.Linear(64, 64), "2:4", HALF, Gpu(major=7, has_cusparselt=True), "the GPU has compute capability 7, and sparse"),
        (nn.Linear(64, 64), "2:4", HALF, Gpu(major=9, has_cusparselt=False), "compute capability 9 needs cuSPARSELt"),
        (nn.Linear(64, 64), "2:4", torch.float32, AMPERE, "sparse kernels multiply FP16 or BF16; set mask.autocast"),
        (nn.Linear(64, 64), "T4:8", HALF, AMPERE, "sparse kernels are for 2:4, not 4:8"),
        (nn.Linear(64, 96), "2:4", HALF, AMPERE, "96 x 64 weights, not multiples of 64"),
        (convolution(64, 64, 3), "2:4", HALF, AMPERE, "a convolution that is no matrix product"),
        (convolution(64, 64, 1, padding=1), "2:4", HALF, AMPERE, "a convolution that is no matrix product"),
    ],
)
def test_layers_without(layer: nn.Module, text: str, dtype: torch.dtype, gpu: Gpu | None, reason: str) -> None:
    found = kernel_obstacle(layer, NMPattern.parse(text), dtype, gpu)
    assert found is not None and found.startswith(reason)


def test_the_cpu_has_none() -> None:
    assert current_gpu(torch.device("cpu")) is None


class Packs:
    """Stands in for the kernels: it lets through what has the pattern along its rows, as they do, and counts."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, weight: torch.Tensor) -> torch.Tensor:
        assert (weight.reshape(len(weight), -1, 4).count_nonzero(2) <= 2).all()
        self.shapes.append(tuple(weight.shape))
        return weight


LAYERS = [
    (nn.Linear(64, 128), (7, 5, 64)),
    (nn.Linear(64, 128, bias=False), (7, 64)),
    (convolution(64, 128, 1), (3, 64, 4, 5)),
    (convolution(64, 128, 1, stride=(2, 3), bias=False), (3, 64, 5, 7)),
]


def gradients(layer: nn.Module, inputs: torch.Tensor) -> list[torch.Tensor]:
    """The answers, and the gradients of the inputs and of all parameters, for the same gradient of the answers."""
    given = inputs.clone().requires_grad_()
    outputs = layer(given)
    layer.zero_grad()
    of_outputs = torch.randn(outputs.shape, generator=torch.Generator().manual_seed(1))
    outputs.backward(of_outputs.to(outputs))
    assert given.grad is not None
    of_parameters = [parameter.grad for parameter in layer.parameters() if parameter.grad is not None]
    return [outputs.detach(), given.grad, *of_parameters]


def compared(layer: nn.Module, shape: tuple[int, ...], text: str, dtype: torch.dtype, device: str, pack: Pack | None) -> float:
    """The largest difference between sparse products and masked dense arithmetic, relative to the largest value."""
    pattern = NMPattern.parse(text)
    layer = layer.to(device)
    parametrize.remove_parametrizations(layer, "weight") if parametrize.is_parametrized(layer) else None
    layer.__dict__.pop("forward", None)
    weight = layer.get_parameter("weight").detach()
    keep = choose_mask(np.abs(weight.cpu().numpy()), pattern, "exact")
    parametrize.register_parametrization(layer, "weight", MaskedWeight(weight, keep), unsafe=True)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        expected = gradients(layer, inputs)
        use_sparse_products(layer, pattern, dtype, **({} if pack is None else {"pack": pack}))
        found = gradients(layer, inputs)
    assert [tensor.shape for tensor in found] == [tensor.shape for tensor in expected]
    assert len(found) == 2 + len(list(layer.parameters()))
    pairs = zip(found, expected, strict=True)
    return max(float((a.float() - b.float()).abs().max() / b.float().abs().max()) for a, b in pairs)


@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("text", ["2:4", "T2:4"])
def test_products_have_the_numbers_of_masked_dense_arithmetic(layer: nn.Module, shape: tuple[int, ...], text: str) -> None:
    packs = Packs()
    # Sums of up to 128 products in float32, in another order: 128 units of 6e-8.
    assert compared(layer, shape, text, torch.float32, "cpu", packs) < 1e-5
    assert packs.shapes == ([(128, 64), (64, 128)] if text == "T2:4" else [(128, 64)])


def test_a_transpose_that_does_not_have_the_pattern_is_noticed() -> None:
    layer = nn.Linear(64, 128)
    pattern = NMPattern.parse("2:4")
    keep = choose_mask(np.abs(layer.weight.detach().numpy()), pattern, "exact")
    parametrize.register_parametrization(layer, "weight", MaskedWeight(layer.weight.detach(), keep), unsafe=True)
    use_sparse_products(layer, NMPattern.parse("T2:4"), torch.float32, Packs())
    with pytest.raises(AssertionError):
        gradients(layer, torch.ones(2, 64))


@pytest.mark.gpu
@requires(gpu=True)
@pytest.mark.parametrize(("layer", "shape"), LAYERS)
@pytest.mark.parametrize("text", ["2:4", "T2:4"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_kernels_have_the_numbers_of_masked_dense_arithmetic(
    layer: nn.Module, shape: tuple[int, ...], text: str, dtype: torch.dtype
) -> None:
    gpu = current_gpu(torch.device("cuda"))
    if (obstacle := kernel_obstacle(layer, NMPattern.parse(text), dtype, gpu)) is not None:
        pytest.skip(obstacle)
    # Both round the same 16-bit products, summed in float32, once; sums in another order may round to the next number.
    unit = 2.0**-10 if dtype == torch.float16 else 2.0**-7
    assert compared(layer, shape, text, dtype, "cuda", None) <= 2 * unit
