"""Selecting what the groups of a convolution read: channels, and of a strided 1x1 convolution positions."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.names import Names, add_constant

__all__ = ["Selection"]

_CHANNEL_AXIS = 1
_SPATIAL_AXES = (2, 3)
# The operator set from which on Slice takes its bounds as inputs; before, consecutive channels are gathered as any other.
_SLICE_BY_INPUTS = 10
# The types that AveragePool takes in every version of the operators.
_POOLED_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)


class Selection:
    """Adds the nodes that select, each before the convolution that needs it; what was selected before is shared."""

    def __init__(self, names: Names) -> None:
        self._names = names
        self._positions: dict[tuple[str | None, tuple[int, ...]], ir.Value] = {}
        self._channels: dict[tuple[str | None, bytes], ir.Value] = {}

    def positions(self, node: ir.Node) -> ir.Value:
        """What a convolution reads, at the positions that it reads: a strided 1x1 convolution then gets the stride 1.

        At stride 2 those are a quarter, and the groups together read many times the input's channels. They are selected by an
        average over windows of one position, which runtimes compute in whichever layout they hold the tensor; a Slice would
        have it brought into the plain layout first, at full size.
        """
        source = node.inputs[0]
        assert source is not None
        strides = tuple(_integers(node, "strides")) or (1, 1)
        if max(strides) == 1 or source.dtype not in _POOLED_TYPES or not _is_pointwise(node):
            return source
        key = source.name, strides
        if key not in self._positions:
            stem = f"{node.name}/positions"
            attributes = {"kernel_shape": [1, 1], "strides": list(strides)}
            pool = ir.node("AveragePool", [source], attributes, name=self._names.unused(stem))
            shape = source.shape or ()
            lengths = {axis: _subsampled(shape[axis], step) for axis, step in zip(_SPATIAL_AXES, strides, strict=True) if shape}
            self._positions[key] = self._add(node, pool, source, stem, lengths)
        node.attributes["strides"] = ir.AttrInt64s("strides", [1, 1])
        return self._positions[key]

    def channels(
        self, node: ir.Node, source: ir.Value, channel_count: int, stem: str, channels: npt.NDArray[np.int64]
    ) -> ir.Value:
        """The tensor that holds `channels`, int64 (count,), of `source` in their order, for a convolution to read.

        `source` itself where they are all of its `channel_count` channels in their order; a Slice where they are consecutive.
        """
        key = source.name, channels.tobytes()
        if key not in self._channels:
            self._channels[key] = self._selected(node, source, channel_count, f"{stem}/channels", channels)
        return self._channels[key]

    def _selected(
        self, node: ir.Node, source: ir.Value, channel_count: int, stem: str, channels: npt.NDArray[np.int64]
    ) -> ir.Value:
        graph, count, first = node.graph, len(channels), int(channels[0])
        assert isinstance(graph, ir.Graph)
        consecutive = np.array_equal(channels, np.arange(first, first + count))
        if consecutive and count == channel_count:
            return source
        if consecutive and graph.opset_imports.get("", _SLICE_BY_INPUTS) >= _SLICE_BY_INPUTS:
            values = {"start": first, "end": first + count, "axis": _CHANNEL_AXIS}
            parameters = [add_constant(graph, self._names, f"{stem}/{k}", np.array([v])) for k, v in values.items()]
            selection = ir.node("Slice", [source, *parameters], name=self._names.unused(stem))
        else:
            indices = add_constant(graph, self._names, f"{stem}/indices", channels)
            selection = ir.node("Gather", [source, indices], {"axis": _CHANNEL_AXIS}, name=self._names.unused(stem))
        return self._add(node, selection, source, stem, {_CHANNEL_AXIS: count})

    def _add(
        self, node: ir.Node, selection: ir.Node, source: ir.Value, stem: str, lengths: Mapping[int, int | None]
    ) -> ir.Value:
        """Insert a selection before `node`; its result has the source's shape, but for the axes with other `lengths`."""
        graph, (selected,) = node.graph, selection.outputs
        assert isinstance(graph, ir.Graph)
        selected.name, selected.type = self._names.unused(f"{source.name}/{stem}"), source.type
        if source.shape is not None:
            selected.shape = ir.Shape([lengths.get(axis, length) for axis, length in enumerate(source.shape)])
        graph.insert_before(node, selection)
        return selected


def _is_pointwise(node: ir.Node) -> bool:
    """Whether the kernel is 1x1 and nothing is padded."""
    weight, padding = node.inputs[1], node.attributes.get("auto_pad")
    shape = None if weight is None else weight.shape
    named = "NOTSET" if padding is None else padding.as_string()
    return (
        shape is not None and tuple(shape)[2:] == (1, 1) and not any(_integers(node, "pads")) and named in ("NOTSET", "VALID")
    )


def _integers(node: ir.Node, name: str) -> tuple[int, ...]:
    attribute = node.attributes.get(name)
    return () if attribute is None else tuple(attribute.as_ints())


def _subsampled(length: Any, stride: int) -> int | None:
    """How many positions are read of so many; None where that is not known."""
    return (length - 1) // stride + 1 if isinstance(length, int) else None
