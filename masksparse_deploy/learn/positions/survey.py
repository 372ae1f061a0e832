"""Which convolutions may leave positions of their output out, and why the others compute all."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.learn.eligibility import check_glob, shared_weights
from masksparse_deploy.learn.positions.maps import Size, dropped_count
from masksparse_deploy.learn.probe import WeightLayer, probe_model, weight_layers

__all__ = ["PositionLayer", "PositionSurvey", "survey_positions"]

_EVERYTHING = "*"


@dataclass(frozen=True, kw_only=True)
class PositionLayer:
    """A convolution that will leave positions out; `mac_count` is for one image and all of its positions."""

    name: str
    size: Size
    mac_count: int


@dataclass(frozen=True, kw_only=True)
class PositionSurvey:
    """All convolutions and linear layers, in the order of the network's modules."""

    layers: tuple[PositionLayer, ...]
    skipped: tuple[SkippedLayer, ...]


def survey_positions(model: nn.Module, image_shape: tuple[int, ...], options: MaskOptions) -> PositionSurvey:
    """Sort the layers into those that will carry a mask of positions and skipped ones with reasons.

    A 2-d convolution may carry one if it runs once for an image, always with the same output size, and has a stored weight
    that no other layer uses, by which ONNX files tell it. By default these
    compute everything: the first convolution, which reads the image; depthwise and grouped ones, which do not become faster
    by it; 1x1 ones without `options.position_pointwise`. A glob in `options.include` other than "*" brings in the first and
    the grouped ones. Linear layers have no positions.

    Args:
        model: the network in evaluation mode.
        image_shape: (channels, height, width) of the images.
        options: position_rate, position_pointwise, include and exclude; with the method "positions", layers that `include`
            names must be able to carry a mask.

    Raises:
        UsageError: a glob matches no layer, a layer named without wildcards cannot carry a mask, none can, or the network
            does not take such images.
    """
    layers, mac_counts = weight_layers(model), probe_model(model, image_shape).mac_counts
    for option, globs in (("include", options.include), ("exclude", options.exclude)):
        for glob in globs:
            check_glob(f"mask.{option}", glob, tuple(layers))
    # An image of another content tells sizes that depend on it.
    runs = [_output_sizes(model, layers, image) for image in _example_images(model, image_shape)]
    first = next((name for name in runs[0] if isinstance(layers[name], _ConvNd)), None)
    shared = shared_weights(model)
    found: list[PositionLayer] = []
    skipped: list[SkippedLayer] = []
    for name, module in layers.items():
        calls = [sizes.get(name, []) for sizes in runs]
        mac_count = mac_counts.get(name, 0)
        obstacle = _obstacle(module, calls, options, shared.get(name))
        if obstacle and name in options.include and options.method == "positions":
            raise UsageError(f"mask.include names {name}, which cannot leave positions out: {obstacle}; remove it")
        reason = obstacle or _choice(name, module, options, is_first=name == first)
        if reason:
            skipped.append(SkippedLayer(name=name, reason=reason, weight_count=module.weight.numel(), mac_count=mac_count))
        else:
            found.append(PositionLayer(name=name, size=calls[0][0], mac_count=mac_count))
    if not found:
        listing = "; ".join(f"{layer.name}: {layer.reason}" for layer in skipped) or "it has no convolutions"
        raise UsageError(f"no layer of the network can leave positions out ({listing})")
    return PositionSurvey(layers=tuple(found), skipped=tuple(skipped))


def _example_images(model: nn.Module, image_shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    noise = torch.randn(1, *image_shape, generator=torch.Generator().manual_seed(0))
    return torch.zeros(1, *image_shape, device=device), noise.to(device)


def _output_sizes(model: nn.Module, layers: dict[str, WeightLayer], image: torch.Tensor) -> dict[str, list[Size]]:
    """Layer name -> (height, width) of its output in every call, in the order of the first calls; (1, 1) without any."""
    sizes: dict[str, list[Size]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: torch.Tensor) -> None:
            is_image = isinstance(module, _ConvNd) and output.ndim == 4
            sizes.setdefault(name, []).append((output.shape[2], output.shape[3]) if is_image else (1, 1))

        return hook

    with ExitStack() as hooks, torch.inference_mode():
        for name, module in layers.items():
            hooks.enter_context(module.register_forward_hook(record(name)))
        model(image)
    return sizes


def _obstacle(module: WeightLayer, calls: Sequence[list[Size]], options: MaskOptions, shared_with: str | None) -> str | None:
    """Why the layer cannot carry a mask, whatever else the user says."""
    if isinstance(module, nn.Linear):
        return "a linear layer has no positions"
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if not isinstance(module, nn.Conv2d):
        return "not a 2-d convolution"
    if "weight" not in module._parameters:
        return "its weight is computed (parametrized), not stored"
    if shared_with is not None:
        return f"shares its weight with {shared_with}"
    if not calls[0]:
        return "does not run when an image passes through the network"
    if calls[0] != calls[1]:
        return "the size of its output depends on the image"
    if len(calls[0]) > 1:
        return f"runs {len(calls[0])} times for an image"
    size = calls[0][0]
    dropped = dropped_count(size, options.position_rate)
    if dropped in (0, size[0] * size[1]):
        rate, share = f"{options.position_rate:g}", "none" if dropped == 0 else "all"
        return f"mask.position_rate {rate} of {size[0]} x {size[1]} positions drops {share}"
    if module.kernel_size == (1, 1) and not options.position_pointwise:
        return "a 1x1 convolution: set mask.position_pointwise to mask it"
    return None


def _choice(name: str, module: WeightLayer, options: MaskOptions, *, is_first: bool) -> str | None:
    """Why a layer computes all positions by the user's choice, or by default."""
    excluded = next((glob for glob in options.exclude if fnmatchcase(name, glob)), None)
    if excluded is not None:
        return f"excluded by mask.exclude {excluded!r}"
    matching = {glob for glob in options.include if fnmatchcase(name, glob)}
    if not matching:
        return "not matched by mask.include"
    if matching != {_EVERYTHING}:
        return None
    if is_first:
        return "the first convolution, which reads the image: name it in mask.include to mask it"
    assert isinstance(module, _ConvNd)
    if module.groups != 1:
        kind = "depthwise" if module.groups == module.in_channels else "grouped"
        return f"a {kind} convolution, which does not become faster by it: name it in mask.include to mask it"
    return None
