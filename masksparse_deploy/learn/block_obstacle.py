"""Why a layer cannot carry a mask of 1xN blocks, or does not unless it is named."""

from collections.abc import Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.learn.probe import Probe, WeightLayer

__all__ = ["block_choice", "block_obstacle"]


def block_obstacle(out_channels: int, in_channels: int, unit: str, pattern: BlockPattern) -> str | None:
    """Why the blocks do not fill the layer, or none of them would be pruned; None if neither.

    Args:
        out_channels: of the layer; features of a linear one.
        in_channels: likewise.
        unit: "channel" or "feature".
        pattern: 1xN.
    """
    if out_channels % pattern.n:
        return f"{out_channels} output {unit}{'' if out_channels == 1 else 's'}, not a multiple of {pattern.n}"
    if pattern.kept_blocks(out_channels, in_channels) < out_channels // pattern.n * in_channels:
        return None
    inputs = f"{in_channels} input {unit}{'' if in_channels == 1 else 's'}"
    if pattern.multiple > 1 and int(pattern.rate * in_channels):
        return f"{inputs}, of which all are kept when rounded to a multiple of {pattern.multiple}"
    return f"{inputs}, of which a share of {pattern.rate:g} is none"


def block_choice(name: str, layers: Mapping[str, WeightLayer], probe: Probe) -> str | None:
    """Why a layer that could carry a mask is left dense unless it is named, as by Xiang et al. 2023; None if it is not.

    Args:
        name: of the layer.
        layers: all layers with weights.
        probe: what `probe_model` found.
    """
    convolutions = [other for other in probe.mac_counts if isinstance(layers[other], _ConvNd)]
    if name == next(iter(convolutions), None):
        return "the first convolution: name it in mask.include to mask it"
    # Bottlenecks and separable convolutions have others, and of these networks the authors prune every one.
    pointwise = [other for other in convolutions if _is_pointwise(layers[other])]
    if name in pointwise and all(_is_strided(layers[other]) for other in pointwise):
        return "a strided 1x1 convolution, as on a shortcut: name it in mask.include to mask it"
    return None


def _is_pointwise(layer: WeightLayer) -> bool:
    return isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)


def _is_strided(layer: WeightLayer) -> bool:
    return isinstance(layer, nn.Conv2d) and max(layer.stride) > 1
