"""One zero image through the network: which layers run, what they cost, and whether data and network fit."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from masksparse_deploy.core.errors import MasksparseError, UsageError

__all__ = ["Probe", "layer_input", "probe_model", "weight_layers"]

WeightLayer = _ConvNd | nn.Linear


@dataclass(frozen=True, kw_only=True)
class Probe:
    """What one image told.

    Attributes:
        mac_counts: multiply-accumulates for one image by layer name; layers that did not run are missing.
        class_count: length of the network's output.
    """

    mac_counts: Mapping[str, int]
    class_count: int


def weight_layers(model: nn.Module) -> dict[str, WeightLayer]:
    """All convolutions and linear layers by name, in the order of the network's modules."""
    return {name: module for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}


def probe_model(model: nn.Module, image_shape: tuple[int, ...]) -> Probe:
    """Run one zero image through the network.

    Args:
        model: in evaluation mode.
        image_shape: (channels, height, width).

    Raises:
        UsageError: the network does not take such images, or does not return one tensor (count, classes).
    """
    counts: dict[str, int] = {}
    with ExitStack() as hooks, torch.inference_mode():
        for name, module in weight_layers(model).items():
            hooks.enter_context(module.register_forward_pre_hook(_input_check(name, image_shape), with_kwargs=True))
            hooks.enter_context(module.register_forward_hook(_mac_counter(name, counts), with_kwargs=True))
        try:
            output = model(torch.zeros(1, *image_shape, device=_device(model)))
        except MasksparseError:
            raise
        except Exception as error:  # the user's forward may raise anything
            raise UsageError(
                f"the network cannot take images of shape {image_shape} ({type(error).__name__}: {error}); check data.train, "
                "data.image_size and model.factory"
            ) from error
    if not isinstance(output, torch.Tensor) or output.ndim != 2:
        found = tuple(output.shape) if isinstance(output, torch.Tensor) else type(output).__name__
        raise UsageError(f"the network returns {found} for one image; a classifier returns one tensor of shape (1, classes)")
    return Probe(mac_counts=counts, class_count=output.shape[1])


def _device(model: nn.Module) -> torch.device:
    """Where the network is, as told by its first parameter."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def _input_check(name: str, image_shape: tuple[int, ...]) -> Callable[[nn.Module, Any, Any], None]:
    def check(module: nn.Module, inputs: Any, named: Any) -> None:
        x = layer_input(inputs, named)
        if isinstance(module, nn.Linear):
            expected, found, unit = module.in_features, x.shape[-1], "features"
        else:
            assert isinstance(module, _ConvNd)
            expected, found, unit = module.in_channels, x.shape[-len(module.kernel_size) - 1], "channels"
        if expected != found:
            raise UsageError(
                f"images of shape {image_shape} do not fit the network: layer {name} takes {expected} {unit} and receives "
                f"{found}; check data.train, data.image_size and model.factory"
            )

    return check


def _mac_counter(name: str, counts: dict[str, int]) -> Callable[[nn.Module, Any, Any, Any], None]:
    def count(module: nn.Module, inputs: Any, named: Any, output: Any) -> None:
        assert isinstance(module, (_ConvNd, nn.Linear))
        if isinstance(module, _ConvTransposeNd):
            positions = layer_input(inputs, named).numel() // module.in_channels
        elif isinstance(module, _ConvNd):
            positions = output.numel() // module.out_channels
        else:
            positions = output.numel() // module.out_features
        # Every weight is used once at every position.
        counts[name] = counts.get(name, 0) + module.weight.numel() * positions

    return count


def layer_input(inputs: tuple[Any, ...], named: Mapping[str, Any]) -> Any:
    """The one input of a layer, handed over by position or by name."""
    return inputs[0] if inputs else named["input"]
