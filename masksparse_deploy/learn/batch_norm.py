"""Batch-norm running statistics: finding them, and estimating them again for a masked network."""

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from masksparse_deploy.core.progress import Progress, silent

__all__ = ["batch_norms", "reestimate", "running_statistics"]

Statistics = dict[str, npt.NDArray[np.float32]]


def batch_norms(model: nn.Module) -> dict[str, _BatchNorm]:
    """The batch-norm modules that keep running statistics, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


def running_statistics(model: nn.Module) -> Statistics:
    """Copies of all running means and variances, by buffer name, float32 (channels,)."""
    statistics: Statistics = {}
    for name, module in batch_norms(model).items():
        assert module.running_mean is not None and module.running_var is not None
        prefix = f"{name}." if name else ""
        statistics[f"{prefix}running_mean"] = module.running_mean.detach().cpu().numpy().copy()
        statistics[f"{prefix}running_var"] = module.running_var.detach().cpu().numpy().copy()
    return statistics


def reestimate(
    model: nn.Module,
    substitutes: Mapping[str, torch.Tensor],
    images: npt.NDArray[np.float32],
    *,
    batch_size: int,
    device: torch.device | None = None,
    progress: Progress = silent,
) -> Statistics:
    """Estimate the running statistics of a masked network from images, without labels.

    Each statistic is the mean over batches of equal size (a cumulative average, so that the order does not matter beyond
    rounding); images that do not fill a batch are left out, unless they are all there is. `model` is not changed.

    Args:
        model: the network.
        substitutes: state to use instead of the network's own, by name: the masked weights.
        images: float32 (count, channels, height, width), in an order that mixes the classes.
        batch_size: images in a batch.
        device: where a copy of the network runs; by default where the network is.
        progress: told after each batch.

    Returns:
        Buffer name -> float32 (channels,); empty for a network without batch norm.
    """
    if not batch_norms(model):
        return {}
    scratch = copy.deepcopy(model).eval().to(device)
    for module in batch_norms(scratch).values():
        module.reset_running_stats()
        module.momentum = None
        module.train()
    device = next(scratch.buffers()).device
    replaced = {name: tensor.to(device) for name, tensor in substitutes.items()}
    size = min(batch_size, len(images))
    count = len(images) // size
    with torch.inference_mode():
        for index in range(count):
            batch = torch.tensor(images[index * size : (index + 1) * size], device=device)
            functional_call(scratch, replaced, (batch.contiguous(memory_format=torch.channels_last),))
            progress("re-estimating batch norm", index + 1, count)
    return running_statistics(scratch)
