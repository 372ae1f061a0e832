"""Channel permutation: a new order of channels under which N:M masks keep more of the weights' magnitude."""

from collections.abc import Sequence

import torch
from torch import nn

from masksparse_deploy.core.masks import AxisPermutation
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.permutation.arrange import arrange_channels
from masksparse_deploy.learn.permutation.layout import orders
from masksparse_deploy.learn.permutation.search import Consumer, search_orders

__all__ = ["find_permutations"]


def find_permutations(
    model: nn.Module,
    layers: Sequence[EligibleLayer],
    image_shape: tuple[int, ...],
    pattern: NMPattern,
    *,
    seed: int,
    progress: Progress = silent,
) -> tuple[AxisPermutation, ...]:
    """Reorder the input channels of layers, and the output channels of what feeds them, so that masks keep more magnitude.

    The function that the network computes stays the same up to rounding, so the new order costs nothing at run time. Pool and
    Yu 2021, "Channel Permutations for N:M Sparsity"; here every operator of the traced network is followed, so that sums,
    concatenations and groups of channels stay together, and what is not understood stays as it is.

    Args:
        model: the trained network in evaluation mode, on the CPU; not changed.
        layers: the layers to be masked.
        image_shape: (channels, height, width) of one image.
        pattern: N:M.
        seed: of the search.
        progress: told how far the search is.

    Returns:
        What `permute` takes; empty if no order keeps more. The sum over layers of the kept share of the magnitude is never
        less than before.

    Raises:
        UsageError: the network cannot be traced by torch.export.
    """
    if pattern.n == pattern.m:
        return ()
    progress("reordering channels", 0, 1)
    arrangement = arrange_channels(model, image_shape)
    axes = {axis.name: axis for axis in arrangement.axes if axis.axis == GROUP_AXIS}
    consumers = [
        Consumer(axis=axes[layer.weight_name], magnitude=_magnitude(model.get_parameter(layer.weight_name), pattern))
        for layer in layers
        if layer.weight_name in axes
    ]
    return orders(arrangement, search_orders(arrangement, consumers, pattern, seed=seed, progress=progress))


def _magnitude(weight: torch.Tensor, pattern: NMPattern) -> torch.Tensor:
    """|weight| as float32 (in_channels up to a multiple of M, everything else), scaled to the sum 1 unless all is zero."""
    magnitude = weight.detach().abs().double().movedim(GROUP_AXIS, 0).flatten(1)
    magnitude = nn.functional.pad(magnitude, (0, 0, 0, pattern.padded_length(len(magnitude)) - len(magnitude)))
    return (magnitude / magnitude.sum().clamp(min=torch.finfo(torch.float64).tiny)).float()
