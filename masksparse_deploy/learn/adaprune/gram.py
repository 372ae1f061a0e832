"""Gram matrices of the inputs of layers: all that least squares needs to know, so that no activations are kept."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.adaprune.patches import check_product, patches
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.probe import layer_input

__all__ = ["gram_matrices", "in_passes"]

# Patches repeat every input kernel_h * kernel_w times: they are made for so many values at a time, 64 MiB of float64.
_PATCH_VALUES = 2**23


def in_passes(layers: Sequence[EligibleLayer], *, limit_bytes: int) -> Iterator[tuple[EligibleLayer, ...]]:
    """Neighbouring layers whose Gram matrices fit into `limit_bytes` together; a larger one is alone."""
    chosen: list[EligibleLayer] = []
    total_bytes = 0
    for layer in layers:
        size_bytes = 8 * (layer.weight_count // layer.shape[0]) ** 2
        if chosen and total_bytes + size_bytes > limit_bytes:
            yield tuple(chosen)
            chosen, total_bytes = [], 0
        chosen.append(layer)
        total_bytes += size_bytes
    if chosen:
        yield tuple(chosen)


def gram_matrices(
    model: nn.Module,
    layers: Sequence[EligibleLayer],
    images: npt.NDArray[np.float32],
    *,
    batch_size: int,
    progress: Progress = silent,
) -> dict[str, torch.Tensor]:
    """X^T X for every layer, X its inputs at all output positions of all images, summed in float64.

    Args:
        model: the dense network in evaluation mode; the images are brought to where it is.
        layers: which ones.
        images: float32 (count, channels, height, width).
        batch_size: images in a batch.
        progress: told after each batch.

    Returns:
        Layer name -> float64 (K, K), K = in_channels * kernel_h * kernel_w in the order of weight.flatten(1).

    Raises:
        UsageError: a layer does not compute a plain product, see `check_product`.
    """
    device = next(model.parameters()).device
    grams: dict[str, torch.Tensor] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for layer in layers:
            module = model.get_submodule(layer.name)
            hooks.enter_context(module.register_forward_hook(_adder(layer.name, grams), with_kwargs=True))
        for start in range(0, len(images), batch_size):
            model(torch.tensor(images[start : start + batch_size], device=device))
            progress("adding up inputs", min(start + batch_size, len(images)), len(images))
    return grams


def _adder(name: str, grams: dict[str, torch.Tensor]) -> Callable[[nn.Module, Any, Any, Any], None]:
    def add(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        x = layer_input(inputs, named)
        assert isinstance(module, (nn.Conv2d, nn.Linear))
        if x.ndim == (3 if isinstance(module, nn.Conv2d) else 1):  # one input, without the axis that counts them
            x, output = x[None], output[None]
        inputs_of_one = module.weight[0].numel()
        if name not in grams:
            check_product(name, module, x[:1], output[:1])
            grams[name] = torch.zeros(inputs_of_one, inputs_of_one, dtype=torch.float64, device=x.device)
        values = output.numel() // module.weight.shape[0] * inputs_of_one
        for part in x.split(max(1, len(x) * _PATCH_VALUES // values)):
            columns = patches(module, part.double())
            grams[name].addbmm_(columns, columns.mT)

    return add
