"""Rewriting 1xN convolutions: a Gather of the channels that are read, and a grouped convolution over them.

Standard ONNX operators that compute exactly the same function: only products with zeros are left out.
"""

from collections.abc import Collection
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.rewrite.blocks.layout import block_size_of, group_layout
from masksparse_deploy.rewrite.blocks.parts import compute_in_parts
from masksparse_deploy.rewrite.blocks.select import Selection
from masksparse_deploy.rewrite.names import Names, add_constant, constant_of, forget_constant

__all__ = ["gather_blocks"]

# Annotations that hold for the dense weight with its zeros, not for the weights of the groups.
_OF_DENSE_WEIGHT = (keys.PATTERN, keys.GROUP_AXIS, keys.MASK_SHA256, keys.DENSITY)


def gather_blocks(
    model: ir.Model, layers: Collection[str], *, multiple: int = 1, smallest_group: int = 1, part_count: int = 1
) -> None:
    """Bring 1xN convolutions into groups over gathered channels, in place; names of tensors, nodes and biases stay.

    Layers that read the same channels of the same tensor share the Gather. Where the channels are all of the tensor's in their
    order there is none, and where they are consecutive it is a Slice. Strided 1x1 convolutions gather only the positions that
    they read.

    Args:
        model: the sparse file.
        layers: names of Conv nodes of the main graph for which `blocks.find.find_blocks` names no obstacle.
        multiple: the channels that a group reads are filled up to a multiple of it, with weights of zero.
        smallest_group: groups of fewer output channels are joined until they have so many, if that divides them.
        part_count: layers are computed in so many parts, a Gather and a Conv each, or as many as they have groups. The layer's
            name is then that of the Concat of their outputs.
    """
    names = Names(model.graph)
    selection = Selection(names)
    for node in list(model.graph):
        if node.name not in layers:
            continue
        stored = node.inputs[1]
        tensor = constant_of(stored)
        assert stored is not None and tensor is not None
        weight = tensor.numpy()
        layout = group_layout(weight, joined_size(block_size(node, weight), len(weight), smallest_group), multiple=multiple)
        for annotation in _OF_DENSE_WEIGHT:
            node.metadata_props.pop(annotation, None)
        constants = [value for value in node.inputs[1:] if value is not None]
        select = partial(selection.channels, node, selection.positions(node), weight.shape[1])
        parts = min(part_count, layout.group_count) if constant_of(constants[-1]) is not None else 1
        if parts > 1:
            compute_in_parts(names, node, layout, parts, select)
        else:
            grouped = add_constant(model.graph, names, f"{stored.name}/groups", layout.weight, dtype=tensor.dtype)
            node.replace_input_with(0, select(str(node.name), layout.channels.reshape(-1)))
            node.replace_input_with(1, grouped)
            node.attributes["group"] = ir.AttrInt64("group", layout.group_count)
        for value in constants:
            forget_constant(model.graph, value)


def block_size(node: ir.Node, weight: npt.NDArray[np.generic]) -> int:
    """N of a layer, as annotated, or else as its zeros are."""
    text = node.metadata_props.get(keys.PATTERN)
    pattern = parse_pattern(text) if text else None
    size = pattern.n if isinstance(pattern, BlockPattern) else block_size_of(weight)
    assert size is not None, "only layers with blocks are rewritten"
    return size


def joined_size(n: int, out_channels: int, smallest: int) -> int:
    """The smallest multiple of N that divides the output channels and is at least `smallest`; N if there is none."""
    joined = (size for size in range(n, out_channels + 1, n) if out_channels % size == 0 and size >= smallest)
    return next(joined, n)
