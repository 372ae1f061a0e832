"""What a layer multiplies its weights by at every position of its output, as a matrix."""

import torch
from torch import nn
from torch.nn import functional

from masksparse_deploy.core.errors import UsageError

__all__ = ["check_product", "patches"]

# Rounding of float32, and of the 11-bit factors that a GPU may multiply instead (TF32).
_FLOAT32, _TF32 = 2.0**-24, 2.0**-11


def patches(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The inputs of every output position, so that the layer computes weight.flatten(1) @ patches, plus its bias.

    Args:
        module: an nn.Conv2d with one group, or an nn.Linear.
        x: its input, (count, in_channels, height, width), the same without count, or (..., in_features).

    Returns:
        (count, K, positions), of the type of `x`; K = in_channels * kernel_h * kernel_w or in_features. For a linear layer
        count is 1 and everything else positions.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(1, -1, module.in_features).mT
    assert isinstance(module, nn.Conv2d) and module.groups == 1
    x = x if x.ndim == 4 else x[None]
    # Left, right, top and bottom apart: "same" padding of an even kernel differs by one.
    padding = module._reversed_padding_repeated_twice
    x = functional.pad(x, padding, "constant" if module.padding_mode == "zeros" else module.padding_mode)
    return functional.unfold(x, module.kernel_size, dilation=module.dilation, stride=module.stride)


def check_product(name: str, module: nn.Module, x: torch.Tensor, output: torch.Tensor) -> None:
    """Refuse a layer that computes something else than weight.flatten(1) @ patches + bias.

    Args:
        name: of the layer.
        module: see `patches`.
        x: one input, with few positions: all of its patches are held in float64.
        output: what the layer made of it, in float32.

    Raises:
        UsageError: the layer is of a class of its own, or hooks change what goes in or comes out.
    """
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    matrix, columns = module.weight.detach().double().flatten(1), patches(module, x.double())
    bias = torch.zeros((), device=x.device) if module.bias is None else module.bias.detach().double()[:, None]
    expected, size = matrix @ columns + bias, matrix.abs() @ columns.abs() + bias.abs()
    found = output.reshape(1, -1, module.out_features).mT if isinstance(module, nn.Linear) else output.reshape(expected.shape)
    # A sum of K products and the bias in float32 errs by at most (K + 1) units of the sum of magnitudes, to first order.
    unit = (matrix.shape[1] + 1) * _FLOAT32 + (2 * _TF32 if x.is_cuda else 0.0)
    wrong = int(((found - expected).abs() > 2 * unit * size).sum())
    if wrong:
        raise UsageError(
            f"layer {name} ({type(module).__name__}) does not compute what its weight and input give: {wrong} of "
            f"{expected.numel()} outputs differ; its weights cannot be fitted. Exclude it (mask.exclude), or remove what "
            "changes its forward"
        )
