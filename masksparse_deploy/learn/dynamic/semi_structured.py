"""PyTorch's semi-structured kernels for masked layers in training, where a GPU has them."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.sparse import SparseSemiStructuredTensorCUSPARSELT, SparseSemiStructuredTensorCUTLASS

from masksparse_deploy.core.patterns import NMPattern

__all__ = ["Gpu", "Pack", "current_gpu", "kernel_obstacle", "pack", "use_sparse_products"]

# Takes a masked matrix, returns what stands in for it as the second argument of `functional.linear`.
Pack = Callable[[torch.Tensor], torch.Tensor]

_PATTERN = (2, 4)
_DTYPES = (torch.float16, torch.bfloat16)
# A multiple of what both libraries ask of rows and of columns, for 16-bit types: 16 and 16, or 32 and 64.
_MULTIPLE = 64
_AMPERE = 8


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What of a GPU decides whether it has the kernels.

    Attributes:
        major: of its compute capability.
        has_cusparselt: whether this PyTorch comes with cuSPARSELt; its own CUTLASS kernels are for capability 8 alone.
    """

    major: int
    has_cusparselt: bool


def current_gpu(device: torch.device) -> Gpu | None:
    """The GPU of a device; None for the CPU."""
    if device.type != "cuda":
        return None
    return Gpu(major=torch.cuda.get_device_capability(device)[0], has_cusparselt=torch.backends.cusparselt.is_available())


def kernel_obstacle(layer: nn.Module, pattern: NMPattern, dtype: torch.dtype, gpu: Gpu | None) -> str | None:
    """Why the products of a masked layer run as dense arithmetic with zeros; None if sparse kernels can do them.

    Args:
        layer: a masked convolution or linear layer.
        pattern: of its mask.
        dtype: that training multiplies in.
        gpu: that training runs on.
    """
    if gpu is None:
        return "there is no GPU"
    if gpu.major < _AMPERE:
        return f"the GPU has compute capability {gpu.major}, and sparse kernels need {_AMPERE}"
    if gpu.major > _AMPERE and not gpu.has_cusparselt:
        return f"compute capability {gpu.major} needs cuSPARSELt, which this PyTorch does not have"
    if dtype not in _DTYPES:
        return "sparse kernels multiply FP16 or BF16; set mask.autocast"
    if (pattern.n, pattern.m) != _PATTERN:
        return f"sparse kernels are for 2:4, not {pattern.n}:{pattern.m}"
    if not isinstance(layer, nn.Linear) and not (isinstance(layer, nn.Conv2d) and _is_pointwise(layer)):
        return "a convolution that is no matrix product: its kernel is larger than 1x1, or padded"
    rows, columns = layer.weight.shape[:2]
    if rows % _MULTIPLE or columns % _MULTIPLE:
        return f"{rows} x {columns} weights, not multiples of {_MULTIPLE}"
    return None


def pack(weight: torch.Tensor) -> torch.Tensor:
    """A masked 2:4 matrix, float16 or bfloat16 (out_features, in_features) on a GPU, in the form that its kernels read."""
    # CUTLASS kernels are for capability 8; cuSPARSELt, where it is there, serves that and later ones.
    kind = (
        SparseSemiStructuredTensorCUSPARSELT if torch.backends.cusparselt.is_available() else SparseSemiStructuredTensorCUTLASS
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor is in prototype stage")
        packed: torch.Tensor = kind.from_dense(weight.contiguous())
    return packed


def use_sparse_products(layer: nn.Module, pattern: NMPattern, dtype: torch.dtype, pack: Pack = pack) -> None:
    """Have a layer without `kernel_obstacle`, whose weight is masked, multiply with sparse kernels, in place.

    Its forward product runs on the packed weight, and with a transposable pattern the gradient of its input on the packed
    transpose; the gradient of the weight is dense.

    Args:
        layer: a linear layer, or a 1x1 convolution, which is a matrix product over the channels.
        pattern: 2:4, or T2:4.
        dtype: that training multiplies in.
        pack: see `Pack`.
    """
    assert isinstance(layer, (nn.Linear, nn.Conv2d))

    def product(rows: torch.Tensor) -> torch.Tensor:
        arguments = rows.to(dtype), layer.weight.flatten(1), pattern.transposable, pack
        result: torch.Tensor = _SparseProduct.apply(*arguments)  # type: ignore[no-untyped-call]
        return result if layer.bias is None else result + layer.bias.to(dtype)

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, nn.Linear):
            return product(inputs.flatten(0, -2)).view(*inputs.shape[:-1], -1)
        down, right = layer.stride
        rows = inputs[:, :, ::down, ::right].permute(0, 2, 3, 1)
        return product(rows.flatten(0, 2)).view(*rows.shape[:3], -1).permute(0, 3, 1, 2)

    layer.forward = forward  # type: ignore[method-assign, assignment]


def _is_pointwise(layer: nn.Conv2d) -> bool:
    return layer.kernel_size == (1, 1) and layer.padding in ((0, 0), "valid", "same")


class _SparseProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: torch.Tensor, weight: torch.Tensor, transposable: bool, pack: Pack) -> torch.Tensor:
        ctx.save_for_backward(rows, weight)
        ctx.transposable, ctx.pack = transposable, pack
        return functional.linear(rows, pack(weight.to(rows.dtype)))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        rows, weight = ctx.saved_tensors
        gradient = gradient.contiguous()
        transposed = weight.to(rows.dtype).t()
        of_rows = functional.linear(gradient, ctx.pack(transposed) if ctx.transposable else transposed)
        return of_rows, (gradient.t() @ rows).to(weight.dtype), None, None
