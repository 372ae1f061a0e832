"""A network that leaves output positions of its convolutions out, for as long as is asked."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.positions import PositionMask

__all__ = ["PositionHook", "masked_positions"]


@contextmanager
def masked_positions(model: nn.Module, positions: Mapping[str, PositionMask]) -> Iterator[None]:
    """Within the block, dropped positions hold the convolution's own bias, or 0, before whatever follows it.

    Copies that are made of the network within the block keep the masks.

    Args:
        model: the network; hooks are put on its convolutions, and taken off at the end.
        positions: layer name -> mask; none leaves the network as it is.

    Raises:
        UsageError: the network has no such convolution; within the block, an output has another size than its mask.
    """
    modules = dict(model.named_modules())
    with ExitStack() as hooks:
        for name, mask in positions.items():
            module = modules.get(name)
            if not isinstance(module, nn.Conv2d):
                found = "no such layer" if module is None else f"a {type(module).__name__} there"
                raise UsageError(
                    f"the mask set leaves out positions of {name!r}, a 2-d convolution, and the network has {found}; "
                    "model.factory must build the network that the masks were learned for"
                )
            hooks.enter_context(module.register_forward_hook(PositionHook(name, mask.keep)))
        yield


@final
class PositionHook:
    """The forward hook of a convolution that puts its bias, or 0, at dropped positions."""

    def __init__(self, layer: str, keep: npt.NDArray[np.bool_]) -> None:
        """Start at the mask `keep`, bool (height, width) of the convolution's output; `layer` is its name in messages."""
        self._layer = layer
        self.set(keep)

    def set(self, keep: npt.NDArray[np.bool_]) -> None:
        """Use another mask from now on."""
        self._keep = torch.from_numpy(np.array(keep))
        self._factor: torch.Tensor | None = None

    def __call__(self, module: nn.Module, inputs: Any, output: torch.Tensor) -> torch.Tensor:
        """The output with `keep` applied, float (count, channels, height, width)."""
        if output.ndim != 4 or output.shape[2:] != self._keep.shape:
            raise UsageError(
                f"the output of {self._layer} is {_text(output.shape[2:])} and its position mask {_text(self._keep.shape)}; "
                "masks of positions are for one size of images: use images of the size that they were learned with, or "
                "learn them again"
            )
        assert isinstance(module, nn.Conv2d)
        bias = module.bias
        if bias is not None:
            return torch.where(self._keep.to(output.device), output, bias.to(output.dtype)[None, :, None, None])
        factor = self._factor
        # For every channel, and in the output's layout: broadcast over channels, the product takes eight times as long.
        if factor is None or factor.dtype != output.dtype or factor.device != output.device:
            factor = torch.empty_like(output[:1], requires_grad=False).copy_(self._keep)
            self._factor = factor
        return output * factor


def _text(size: torch.Size) -> str:
    return " x ".join(map(str, size))
