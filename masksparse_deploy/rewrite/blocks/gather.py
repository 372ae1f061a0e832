"""Rewriting 1xN convolutions: a Gather of the channels that are read, and a grouped convolution over them.

Standard ONNX operators that compute exactly the same function: only products with zeros are left out.
"""

from collections.abc import Collection

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.rewrite.blocks.layout import block_size_of, group_layout
from masksparse_deploy.rewrite.names import Names, add_constant

__all__ = ["gather_blocks"]

_CHANNEL_AXIS = 1
# Annotations that hold for the dense weight with its zeros, not for the weights of the groups.
_OF_DENSE_WEIGHT = (keys.PATTERN, keys.GROUP_AXIS, keys.MASK_SHA256, keys.DENSITY)


def gather_blocks(model: ir.Model, layers: Collection[str], *, multiple: int = 1, smallest_group: int = 1) -> None:
    """Bring 1xN convolutions into groups over gathered channels, in place; names of tensors, nodes and biases stay.

    Layers that read the same channels of the same tensor share the Gather. Where the channels are all of the tensor's in their
    order there is none, and where they are consecutive it is a Slice.

    Args:
        model: the sparse file.
        layers: names of Conv nodes of the main graph for which `blocks.find.find_blocks` names no obstacle.
        multiple: the channels that a group reads are filled up to a multiple of it, with weights of zero.
        smallest_group: groups of fewer output channels are joined until they have so many, if that divides them.
    """
    graph = model.graph
    names = Names(graph)
    shared: dict[tuple[str, bytes], ir.Value] = {}
    for node in list(graph):
        if node.name not in layers:
            continue
        source, stored = node.inputs[0], node.inputs[1]
        assert source is not None and stored is not None
        tensor = ir.convenience.get_const_tensor(stored)
        assert tensor is not None
        weight = tensor.numpy()
        layout = group_layout(weight, joined_size(block_size(node, weight), len(weight), smallest_group), multiple=multiple)
        flat = layout.channels.reshape(-1)
        key = source.name or "", flat.tobytes()
        if key not in shared:
            shared[key] = _selected(names, node, source, flat, weight.shape[1])
        grouped = add_constant(graph, names, f"{stored.name}/groups", layout.weight, dtype=tensor.dtype)
        node.replace_input_with(0, shared[key])
        node.replace_input_with(1, grouped)
        node.attributes["group"] = ir.AttrInt64("group", layout.group_count)
        for annotation in _OF_DENSE_WEIGHT:
            node.metadata_props.pop(annotation, None)
        _forget(graph, stored)


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


def _selected(names: Names, node: ir.Node, source: ir.Value, channels: npt.NDArray[np.int64], channel_count: int) -> ir.Value:
    """The tensor that holds `channels` of `source`, in their order."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    count, first = len(channels), int(channels[0])
    stem = f"{node.name}/channels"
    consecutive = np.array_equal(channels, np.arange(first, first + count))
    if consecutive and count == channel_count:
        return source
    if consecutive:
        bounds = (np.array([value]) for value in (first, first + count, _CHANNEL_AXIS))
        words = ("start", "end", "axis")
        parameters = [add_constant(graph, names, f"{stem}/{word}", array) for word, array in zip(words, bounds, strict=True)]
        selection = ir.node("Slice", [source, *parameters], name=names.unused(stem))
    else:
        indices = add_constant(graph, names, f"{stem}/indices", channels)
        selection = ir.node("Gather", [source, indices], {"axis": _CHANNEL_AXIS}, name=names.unused(stem))
    (selected,) = selection.outputs
    selected.name, selected.type = names.unused(f"{source.name}/{node.name}/channels"), source.type
    if source.shape is not None:
        selected.shape = ir.Shape([count if axis == _CHANNEL_AXIS else length for axis, length in enumerate(source.shape)])
    graph.insert_before(node, selection)
    return selected


def _forget(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None:
        graph.remove(producer, safe=True)
    elif value.name is not None:
        graph.initializers.pop(value.name, None)
