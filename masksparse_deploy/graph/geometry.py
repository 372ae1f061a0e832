"""Where the windows of a convolution or a pooling lie, from the attributes of its node."""

from collections.abc import Sequence
from dataclasses import dataclass

from masksparse_deploy.graph import operators
from masksparse_deploy.graph.model import Node

__all__ = ["PoolGeometry", "conv_geometry", "pool_geometry"]


@dataclass(frozen=True, kw_only=True)
class PoolGeometry:
    """Kernel and strides in (height, width), padding (top, left, bottom, right), and how far ceil_mode reaches beyond it."""

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    pads: operators.Pads
    extension: tuple[int, int]


def pool_geometry(node: Node, size: Sequence[int]) -> PoolGeometry:
    """The geometry of a pooling node for an input of (height, width) `size`."""
    kernel = tuple(node.attributes["kernel_shape"])
    strides = tuple(node.attributes.get("strides", (1, 1)))
    pads = _pads(node, size, kernel, strides, (1, 1))
    extension = (0, 0)
    if node.attributes.get("ceil_mode", 0):
        extension = operators.ceil_extension(size, kernel=kernel, strides=strides, pads=pads)
    return PoolGeometry(kernel=kernel, strides=strides, pads=pads, extension=extension)


def conv_geometry(
    node: Node, size: Sequence[int], kernel: Sequence[int]
) -> tuple[tuple[int, ...], operators.Pads, tuple[int, ...]]:
    """Strides, (top, left, bottom, right) padding and dilations of a Conv node for an input of (height, width) `size`."""
    strides = tuple(node.attributes.get("strides", (1, 1)))
    dilations = tuple(node.attributes.get("dilations", (1, 1)))
    return strides, _pads(node, size, kernel, strides, dilations), dilations


def _pads(
    node: Node, size: Sequence[int], kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> operators.Pads:
    attributes = node.attributes
    return operators.resolve_pads(
        attributes.get("auto_pad", "NOTSET"),
        attributes.get("pads", (0, 0, 0, 0)),
        size=size,
        kernel=kernel,
        strides=strides,
        dilations=dilations,
    )
