"""The authors' way to fit kept weights: gradient descent on the squared difference from the dense layer's outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.groups import count_kept, filled, members_of
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.learn.probe import layer_input

__all__ = ["absorbed", "descend", "inputs_of"]

# As in the authors' AdaPrune/utils/adaprune.py: Adam's rate for weights, and inputs drawn for a step.
_LEARNING_RATE = 1e-3
_BATCH = 50


def inputs_of(
    model: nn.Module, name: str, images: npt.NDArray[np.float32], *, batch_size: int, progress: Progress = silent
) -> list[torch.Tensor]:
    """The inputs of one layer for all images, one tensor each, on the model's device.

    Args:
        model: the dense network in evaluation mode.
        name: of the layer.
        images: float32 (count, channels, height, width).
        batch_size: images in a batch.
        progress: told after each batch.

    Raises:
        UsageError: the layer receives inputs of several shapes, which cannot be drawn together.
    """
    device = next(model.parameters()).device
    cached: list[torch.Tensor] = []
    with model.get_submodule(name).register_forward_hook(_keeper(cached), with_kwargs=True), torch.inference_mode():
        for start in range(0, len(images), batch_size):
            model(torch.tensor(images[start : start + batch_size], device=device))
            progress("caching inputs", min(start + batch_size, len(images)), len(images))
    shapes = sorted({tuple(x.shape) for x in cached})
    if len(shapes) > 1:
        raise UsageError(
            f"layer {name} receives inputs of the shapes {', '.join(map(str, shapes))}; the iterative reconstruction draws "
            "inputs of one shape: use mask.reconstruction: closed-form, or exclude the layer"
        )
    return cached


def absorbed(weight: npt.NDArray[np.float32], mask: LayerMask) -> npt.NDArray[np.float32]:
    """The masked weight, with the sum of what a group drops shared out equally among the weights that it keeps.

    Args:
        weight: float32 (out_channels, in_channels, kernel_h, kernel_w) or (out_features, in_features).
        mask: of the weight.
    """
    assert isinstance(mask.pattern, NMPattern), "methods that need 1xN blocks are others"
    axis, size = mask.group_axis, mask.pattern.m
    dropped = filled(np.where(mask.keep, np.float32(0), weight), axis=axis, size=size, fill=0)
    share = members_of(dropped, axis=axis, size=size).sum(0) / count_kept(mask.keep, axis=axis, size=size)
    of_each = np.repeat(share, size, axis=axis).take(range(weight.shape[axis]), axis=axis)
    return np.where(mask.keep, weight + of_each, 0).astype(np.float32)


def descend(
    module: nn.Module, start: torch.Tensor, keep: torch.Tensor, inputs: list[torch.Tensor], *, steps: int, seed: int
) -> torch.Tensor:
    """Adam on the mean squared difference between the outputs of kept and of dense weights, on inputs drawn at random.

    Args:
        module: the dense layer; not changed.
        start: where the descent begins, float32, see `absorbed`.
        keep: bool, the shape of `start`.
        inputs: see `inputs_of`.
        steps: of Adam.
        seed: of the drawing.

    Returns:
        float32, the shape of `start`, 0 where dropped.
    """
    generator = np.random.default_rng(seed)
    weight = start.clone().requires_grad_(True)
    optimizer = torch.optim.Adam([weight], lr=_LEARNING_RATE)
    for _ in range(steps):
        drawn = generator.permutation(len(inputs))[:_BATCH]
        x = torch.stack([inputs[index] for index in drawn])
        with torch.no_grad():
            target = module(x)
        loss = functional.mse_loss(functional_call(module, {"weight": weight * keep}, (x,)), target)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return weight.detach() * keep


def _keeper(cached: list[torch.Tensor]) -> Callable[[nn.Module, Any, Any, Any], None]:
    def keep(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        x = layer_input(inputs, named)
        # A copy, as what follows may change its input in place.
        cached.extend(x.clone() if x.ndim > (3 if isinstance(module, nn.Conv2d) else 1) else [x.clone()])

    return keep
