"""Who reads a tensor's channels: selections for gathered layers, through operators that act on each channel by itself."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.names import constant_of, forget_constant, set_constant

__all__ = ["Readers", "find_readers", "own_gather"]

_CHANNEL_AXIS = 1
_IMAGE_RANK = 4
_SLICE_INPUTS = 4
# Of one tensor: channel c of the result is made of channel c alone, in the same way for every channel.
_UNARY = {
    "Abs",
    "Celu",
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Mish",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Tanh",
    "ThresholdedRelu",
}
_BINARY = {"Add", "Div", "Mul", "Sub"}


@dataclass(frozen=True, eq=False, kw_only=True)
class Readers:
    """All that reads a convolution's output.

    Attributes:
        tensors: that output, and what is made of it channel by channel.
        selections: the Gather and Slice operators that select channels of these.
        is_read: bool (channels,), which channels are selected at least once.
    """

    tensors: Sequence[ir.Value]
    selections: Sequence[ir.Node]
    is_read: npt.NDArray[np.bool_]

    def move(self, channels: npt.NDArray[np.int64]) -> None:
        """Let the selections find their channels where the tensors hold only `channels`, in that order."""
        places = np.full(len(self.is_read), -1)
        places[channels] = np.arange(len(channels))
        for node in self.selections:
            now = places[_selected(node, len(places))]
            assert (now >= 0).all(), "all that is read is computed"
            if np.array_equal(now, np.arange(len(channels))):
                _take_out(node)
            elif node.op_type == "Gather":
                set_constant(node.inputs[1], now)
            else:  # what lies between two channels that are read is read too, so that they stay consecutive
                set_constant(node.inputs[1], now[:1])
                set_constant(node.inputs[2], now[-1:] + 1)


def find_readers(output: ir.Value, channel_count: int, known: Collection[str]) -> Readers | None:
    """Follow a convolution's output (batch, channels, height, width) to the selections of its channels.

    Args:
        output: the tensor.
        channel_count: how many channels it has.
        known: names of the sparse file's tensors, which selections for gathered layers do not give.

    Returns:
        None where something else reads it, or nothing does.
    """
    tensors, selections, pending = [output], [], [output]
    between: list[ir.Node] = []
    producer = output.producer()
    graph = None if producer is None else producer.graph
    while pending:
        value = pending.pop()
        if value.is_graph_output():
            return None
        for reader, index in value.uses():
            result = reader.outputs[0]
            if reader.graph is not graph:
                return None
            is_own = result.name not in known
            if is_own and _is_selection(reader) and index == 0:
                selections.append(reader)
            elif _is_channelwise(reader) or (is_own and reader.op_type == "AveragePool"):
                if reader not in between:
                    between.append(reader)
                    tensors.append(result)
                    pending.append(result)
            else:
                return None
    if not selections or not all(_reads_only(node, tensors) for node in between):
        return None
    is_read = np.zeros(channel_count, dtype=np.bool_)
    for node in selections:
        is_read[_selected(node, channel_count)] = True
    return Readers(tensors=tensors, selections=selections, is_read=is_read)


def own_gather(value: ir.Value, known: Collection[str]) -> ir.Node | None:
    """The Gather of channels for a gathered layer that gives `value`, if one does."""
    producer = value.producer()
    is_own = producer is not None and producer.op_type == "Gather" and value.name not in known
    return producer if is_own else None


def _take_out(node: ir.Node) -> None:
    """Let what reads a selection of all channels in their order read the tensor itself."""
    graph, (source, *parameters) = node.graph, node.inputs
    assert isinstance(graph, ir.Graph) and source is not None
    node.outputs[0].replace_all_uses_with(source)
    graph.remove(node, safe=True)
    for value in parameters:
        if value is not None:
            forget_constant(graph, value)


def _is_selection(node: ir.Node) -> bool:
    """Whether an operator of ours selects channels: a Gather, or a Slice from a start to an end along an axis."""
    if node.op_type == "Slice":
        axis = constant_of(node.inputs[3]) if len(node.inputs) == _SLICE_INPUTS else None
        return axis is not None and axis.numpy().tolist() == [_CHANNEL_AXIS]
    return node.op_type == "Gather" and node.attributes.get_int("axis", 0) == _CHANNEL_AXIS


def _is_channelwise(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx") and node.op_type in _UNARY | _BINARY and len(node.outputs) == 1


def _reads_only(node: ir.Node, tensors: Sequence[ir.Value]) -> bool:
    """Whether all that an operator reads is among `tensors` or one number for all channels."""
    for value in node.inputs:
        tensor = constant_of(value)
        is_number = tensor is not None and tensor.size == 1 and len(tensor.shape) <= _IMAGE_RANK
        if value is not None and value not in tensors and not is_number:
            return False
    return True


def _selected(node: ir.Node, channel_count: int) -> npt.NDArray[np.int64]:
    """The channels that a selection of ours takes, in its order."""
    parameters = [constant_of(value) for value in node.inputs[1:]]
    arrays = [tensor.numpy() for tensor in parameters if tensor is not None]
    return arrays[0] if node.op_type == "Gather" else np.arange(channel_count)[int(arrays[0][0]) : int(arrays[1][0])]
