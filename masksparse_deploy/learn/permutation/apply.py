"""A network in a new order of channels, and the proof by trial that it computes the same."""

import copy
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import AxisPermutation

__all__ = ["check_unchanged", "permute"]

_REMEDY = "run 'masksparse learn' again"
_FLOAT32_ROUNDOFF = 2.0**-24
# For networks that round to float32 inside, whatever they are given.
_SLACK = 4


def permute(model: nn.Module, permutations: Sequence[AxisPermutation]) -> nn.Module:
    """A copy of the network with parameters and buffers in a new order.

    Args:
        model: the network that the permutations were found for; not changed.
        permutations: see `find_permutations`.

    Raises:
        ArtifactError: a permutation names a tensor or an axis that the network does not have, or has another length.
        UsageError: the network cannot be copied.
    """
    try:
        permuted = copy.deepcopy(model)
    except Exception as error:  # modules may define what copying them does
        raise UsageError(
            f"channels cannot be reordered: copy.deepcopy of the network raised {type(error).__name__}: {error}; set "
            "mask.permute: false to leave them in order"
        ) from error
    tensors = {
        **dict(permuted.named_parameters(remove_duplicate=False)),
        **dict(permuted.named_buffers(remove_duplicate=False)),
    }
    with torch.no_grad():
        for permutation in permutations:
            tensor = tensors.get(permutation.name)
            where = f"permutation of {permutation.name}, axis {permutation.axis}"
            if tensor is None:
                raise ArtifactError(f"{where}: the network has no tensor of that name; it was made for another one: {_REMEDY}")
            if not 0 <= permutation.axis < tensor.ndim or tensor.shape[permutation.axis] != permutation.order.size:
                raise ArtifactError(
                    f"{where}: it orders {permutation.order.size} channels, and the network's tensor has the shape "
                    f"{tuple(tensor.shape)}; it was made for another network: {_REMEDY}"
                )
            order = torch.tensor(permutation.order, device=tensor.device)
            tensor.copy_(tensor.index_select(permutation.axis, order))
    return permuted


def check_unchanged(model: nn.Module, permuted: nn.Module, images: npt.NDArray[np.float32]) -> None:
    """Make sure that a network in a new order of channels computes what it did before.

    Both are evaluated in float64, where sums in another order differ by about 2^-29 of what they differ by in float32. They
    may differ by what float32 does to the network itself: the largest distance between its outputs in float32 and in
    float64, times 4, and at least the roundoff of float32 at the largest output. That is below anything that deploying the
    network in float32 can tell.

    Args:
        model: in evaluation mode.
        permuted: as `permute` returned it.
        images: float32 (count, channels, height, width), a handful.

    Raises:
        UsageError: the outputs differ by more, are not finite, or the network cannot be evaluated in float64.
    """
    exact, reordered = _outputs(model, images, torch.float64), _outputs(permuted, images, torch.float64)
    rounding = float((_outputs(model, images, torch.float32) - exact).abs().max())
    allowed = _SLACK * max(rounding, _FLOAT32_ROUNDOFF * float(exact.abs().max()))
    difference = float((reordered - exact).abs().max())
    # Not "greater": NaN must not pass.
    if not difference <= allowed:
        raise UsageError(
            f"reordering channels changed the outputs of the network by {difference:.3g}; rounding explains at most "
            f"{allowed:.3g}. Its forward does something that the analysis does not see; set mask.permute: false"
        )


def _outputs(model: nn.Module, images: npt.NDArray[np.float32], dtype: torch.dtype) -> torch.Tensor:
    try:
        with torch.inference_mode():
            outputs: torch.Tensor = copy.deepcopy(model).to(dtype)(torch.tensor(images, dtype=dtype))
            return outputs.double()
    except Exception as error:  # the user's forward may raise anything
        raise UsageError(
            f"whether reordering channels leaves the network unchanged cannot be checked: evaluating it in {dtype} raised "
            f"{type(error).__name__}: {error}; set mask.permute: false"
        ) from error
