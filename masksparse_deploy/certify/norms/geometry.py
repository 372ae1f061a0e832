"""How large the zero-padded input of a convolution in an ONNX file is, along each of its spatial axes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from masksparse_deploy.graph.model import Node

__all__ = ["NormGeometry", "norm_geometry"]


@dataclass(frozen=True, kw_only=True)
class NormGeometry:
    """The arguments of `convolution_norm` that a node determines."""

    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    groups: int
    padded_size: tuple[int, ...]


def norm_geometry(node: Node, *, size: Sequence[int], taps: Sequence[int]) -> NormGeometry:
    """The geometry of a Conv, or of the convolution that a ConvTranspose is the transpose of.

    Args:
        node: a Conv or ConvTranspose node.
        size: the spatial lengths of its input.
        taps: the spatial lengths of its weight.
    """
    get = node.attributes.get
    axes = len(taps)
    strides, dilations = tuple(get("strides", (1,) * axes)), tuple(get("dilations", (1,) * axes))
    extents = [(k - 1) * d + 1 for k, d in zip(taps, dilations, strict=True)]
    if node.op == "ConvTranspose":
        # what it reaches before padding is cut off; output padding adds zeros, which have no norm
        padded = [(n - 1) * s + e for n, s, e in zip(size, strides, extents, strict=True)]
    else:
        padded = _padded(node.attributes, size, strides, extents)
    return NormGeometry(strides=strides, dilations=dilations, groups=int(get("group", 1)), padded_size=tuple(padded))


def _padded(attributes: Mapping[str, Any], size: Sequence[int], strides: Sequence[int], extents: Sequence[int]) -> list[int]:
    auto_pad = attributes.get("auto_pad", "NOTSET")
    if auto_pad == "NOTSET":
        pads = attributes.get("pads", (0,) * (2 * len(size)))
        return [n + before + after for n, before, after in zip(size, pads, pads[len(size) :], strict=False)]
    if auto_pad == "VALID":
        return list(size)
    # as many outputs as ceil(n / stride) need
    return [max(n, (-(-n // s) - 1) * s + e) for n, s, e in zip(size, strides, extents, strict=True)]
