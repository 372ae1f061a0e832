"""A weight that its layer sees through a mask, and whose gradient does not."""

from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

__all__ = ["MaskedWeight", "straight_through"]


@final
class MaskedWeight(nn.Module):
    """The mask of one layer, as a parametrization of its weight.

    The layer computes with keep * W, forwards and, for the gradient of its input, backwards; W itself gets the gradient of
    that product as if nothing had been masked, so that dropped weights go on moving and may come back.

    Attributes:
        keep: float32, the weight's shape, 1 where a weight is kept and 0 elsewhere.
    """

    keep: torch.Tensor

    def __init__(self, weight: torch.Tensor, keep: npt.NDArray[np.bool_]) -> None:
        """Start at the mask `keep` of `weight`."""
        super().__init__()
        self.register_buffer("keep", torch.empty_like(weight))
        self.set(keep)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The kept weights, zeros elsewhere; the gradient goes straight through."""
        return straight_through(weight, self.keep)

    def set(self, keep: npt.NDArray[np.bool_]) -> None:
        """Use another mask from now on."""
        self.keep.copy_(torch.tensor(keep))

    def kept(self) -> npt.NDArray[np.bool_]:
        """The mask as bool."""
        return self.keep.bool().cpu().numpy()


def straight_through(weight: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
    """`weight` times `keep`, and all of the gradient for `weight` unmasked (Bengio et al. 2013; Hubara et al. 2021)."""
    masked: torch.Tensor = _StraightThrough.apply(weight, keep)  # type: ignore[no-untyped-call]
    return masked


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, keep: torch.Tensor) -> torch.Tensor:
        return weight * keep

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None
