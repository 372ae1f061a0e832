"""Leaving out output channels that nobody reads.

A gathered layer reads, over all its groups, only some of the channels of its input. Where nobody else reads that input, the
convolution before need not compute the others: its groups keep what is read, filled up to whole blocks of channels.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.rewrite.blocks.channelwise import Readers, find_readers, own_gather
from masksparse_deploy.rewrite.blocks.select import Selection
from masksparse_deploy.rewrite.names import Names, add_constant, constant_of, forget_constant

__all__ = ["OutputGroup", "kept_outputs", "leave_out_unread"]

_CHANNEL_AXIS = 1


@dataclass(frozen=True, eq=False, kw_only=True)
class OutputGroup:
    """One group of a convolution that computes fewer channels.

    Attributes:
        origin: the group of the full convolution that it is taken from, whose input channels it reads.
        rows: int64, ascending: the output channels that it computes.
    """

    origin: int
    rows: npt.NDArray[np.int64]


def leave_out_unread(model: ir.Model, known: Collection[str], channel_block: int) -> None:
    """Let convolutions compute only the output channels that are read, in whole blocks, in place; the others stay as they are.

    What such a convolution computes, and what operators make of it that act on each channel by itself, gets new names; the
    annotations `held_tensor` and `held_channels` say what it is in the sparse file. Later layers come first, as groups of
    which nothing is read are left out too, with what they alone read.

    Args:
        model: with layers gathered (blocks.gather).
        known: names of the sparse file's tensors and constants; operators that give others select for gathered layers.
        channel_block: channels that the runtime keeps together: groups compute a multiple of it.
    """
    names = Names(model.graph)
    selection = Selection(names)
    for node in reversed(list(model.graph)):
        if node.op_type != "Conv" or node.domain not in ("", "ai.onnx"):
            continue
        weight, bias = (constant_of(value) for value in (*node.inputs[1:], None)[:2])
        if weight is None or (bias is None and len(node.inputs) > 2) or weight.numpy().ndim != 4:
            continue
        groups, stored = node.attributes.get_int("group", 1), node.inputs[1]
        if groups > 1 and stored is not None and stored.name in known:
            continue  # groups of the sparse file, as in depthwise layers, stay as they are
        readers = find_readers(node.outputs[0], len(weight.numpy()), known)
        kept = None if readers is None else kept_outputs(readers.is_read, groups, channel_block)
        if readers is not None and kept is not None:
            channels = np.concatenate([group.rows for group in kept])
            _reduce(names, node, channels)
            _regroup(selection, node, kept, groups, known)
            _rename(names, node, readers, channels, known)
            readers.move(channels)


def kept_outputs(is_read: npt.NDArray[np.bool_], groups: int, channel_block: int) -> list[OutputGroup] | None:
    """The groups, all of one width, that compute the channels which are read, and others of the same group to fill them up.

    A group of which more is read than others need becomes several. Of the widths, multiples of the channel block, the one
    that computes least, then the largest.

    Args:
        is_read: bool (output channels,).
        groups: of the full convolution.
        channel_block: channels that the runtime keeps together.

    Returns:
        the groups; None where nothing is saved.
    """
    read = is_read.reshape(groups, -1)
    needed, size = read.sum(axis=1), read.shape[1]
    computed: dict[int, int] = {}
    for width in range(channel_block, size + 1, channel_block):
        filled = -(-needed // width) * width
        if (filled <= size).all() and filled.sum() < is_read.size:
            computed[width] = int(filled.sum())
    if not computed:
        return None
    width = min(computed, key=lambda one: (computed[one], -one))
    kept = []
    for origin, (mask, count) in enumerate(zip(read, -(-needed // width), strict=True)):
        # stable: what is read first, then the others, each in their order
        rows = np.sort(np.argsort(~mask, kind="stable")[: count * width]) + origin * size
        kept += [OutputGroup(origin=origin, rows=part) for part in rows.reshape(count, width).astype(np.int64)]
    return kept


def _reduce(names: Names, node: ir.Node, channels: npt.NDArray[np.int64]) -> None:
    """Leave rows of a convolution's weight and bias out."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for place, value in list(enumerate(node.inputs))[1:]:
        tensor = constant_of(value)
        if value is not None and tensor is not None:
            fewer = np.ascontiguousarray(tensor.numpy()[channels])
            node.replace_input_with(place, add_constant(graph, names, f"{value.name}/read", fewer, dtype=tensor.dtype))
            forget_constant(graph, value)


def _regroup(selection: Selection, node: ir.Node, kept: Sequence[OutputGroup], groups: int, known: Collection[str]) -> None:
    """Let every group read the channels of the group that it is taken from."""
    origins = [group.origin for group in kept]
    node.attributes["group"] = ir.AttrInt64("group", len(kept))
    if origins == list(range(groups)):
        return
    (read, graph), weight = (node.inputs[0], node.graph), constant_of(node.inputs[1])
    assert read is not None and isinstance(graph, ir.Graph) and weight is not None
    width = weight.numpy().shape[1]
    places = np.concatenate([np.arange(width) + origin * width for origin in origins])
    source, channels, gather = read, places, own_gather(read, known)
    if gather is not None:
        first, indices = gather.inputs[:2]
        stored = constant_of(indices)
        assert first is not None and stored is not None
        source, channels = first, stored.numpy()[places]
    count = source.shape[_CHANNEL_AXIS] if source.shape is not None else None
    chosen = selection.channels(node, source, count if isinstance(count, int) else 0, str(node.name), channels)
    node.replace_input_with(0, chosen)
    if gather is not None and not read.uses():
        indices = gather.inputs[1]
        graph.remove(gather, safe=True)
        if indices is not None:
            forget_constant(graph, indices)


def _rename(names: Names, node: ir.Node, readers: Readers, channels: npt.NDArray[np.int64], known: Collection[str]) -> None:
    """Give what holds fewer channels its shape, and another name than the whole tensor has."""
    node.metadata_props[keys.HELD_TENSOR] = str(node.outputs[0].name)
    node.metadata_props[keys.HELD_CHANNELS] = " ".join(map(str, channels))
    for value in readers.tensors:
        if value.name in known:
            value.name = names.unused(f"{value.name}/read")
        if value.shape is not None:
            value.shape = ir.Shape([len(channels) if a == _CHANNEL_AXIS else n for a, n in enumerate(value.shape)])
