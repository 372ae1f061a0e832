"""Where channels of zeros can come from for free: layers that compute some more outputs, all of them zero.

If the weights and biases of further output channels are zero, so are the channels, and they stay zero through operators that
map zero to zero. Whatever reads them in the end must have zero weights for them, so that nothing they touch changes.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from masksparse_deploy.bake.stored import fixed_array, stored_tensor

__all__ = ["CHANNEL_AXIS", "Producer", "Supply", "find_supply"]

# Of images (batch, channels, height, width) and of features (batch, channels).
CHANNEL_AXIS = 1
# Operators whose output channel depends on the same channel of their inputs only, and is zero where that is; how many inputs
# carry channels.
_KEEPS_ZERO = {
    "Add": 2,
    "AveragePool": 1,
    "Clip": 1,
    "Dropout": 1,
    "Elu": 1,
    "GlobalAveragePool": 1,
    "GlobalMaxPool": 1,
    "HardSwish": 1,
    "Identity": 1,
    "LeakyRelu": 1,
    "MaxPool": 1,
    "Relu": 1,
    "Sub": 2,
    "Tanh": 1,
}


@dataclass(frozen=True, eq=False, kw_only=True)
class Producer:
    """A layer that can compute further output channels.

    Attributes:
        node: a convolution or matrix product.
        weight: its constant, read by this node alone.
        output_axis: the axis of `weight` that holds the output channels.
        bias: its constant (out_channels,), read by this node alone; None if there is none.
    """

    node: ir.Node
    weight: ir.Value
    output_axis: int
    bias: ir.Value | None


@dataclass(frozen=True, eq=False, kw_only=True)
class Supply:
    """What has to change together so that a tensor gets channels of zeros.

    Attributes:
        producers: layers that compute the channels, in the order in which they were found.
        consumers: layers that read them and need zero weights for them.
        values: the tensors that get the channels.
    """

    producers: tuple[Producer, ...]
    consumers: frozenset[ir.Node]
    values: tuple[ir.Value, ...]


def find_supply(value: ir.Value, consumers: Mapping[ir.Node, int], graph: ir.Graph) -> Supply | None:
    """Find the layers that could compute channels of zeros for `value`; None where something stands in the way.

    Args:
        value: the input of a layer that lacks channels.
        consumers: the layers that can take further channels, and the axis of their input that holds them.
        graph: the main graph; all that changes together must lie in it.
    """
    producers: list[Producer] = []
    reached: set[ir.Node] = set()
    values: dict[ir.Value, None] = {}
    pending = [value]
    while pending:
        current = pending.pop()
        if current in values:
            continue
        values[current] = None
        node = current.producer()
        if node is None or node.graph is not graph or current.is_graph_output():
            return None
        producer = _producer(node)
        if producer is not None:
            producers.append(producer)
        elif _carries(node):
            pending += _carried(node)
        else:
            return None
        for reader, index in current.uses():
            if consumers.get(reader) == CHANNEL_AXIS and index == 0:
                reached.add(reader)
            elif reader.graph is graph and _carries(reader) and index < _KEEPS_ZERO[reader.op_type]:
                pending += [reader.outputs[0], *_carried(reader)]
            else:
                return None
    return Supply(producers=tuple(producers), consumers=frozenset(reached), values=tuple(values))


def _carried(node: ir.Node) -> Iterator[ir.Value]:
    return (value for value in node.inputs[: _KEEPS_ZERO[node.op_type]] if value is not None)


def _carries(node: ir.Node) -> bool:
    """Whether zero channels of the inputs are zero channels of the one output, and the other channels do not notice them."""
    if not _is_standard(node) or node.op_type not in _KEEPS_ZERO or any(output.uses() for output in node.outputs[1:]):
        return False
    if node.op_type == "Clip":
        return _holds_zero(node)
    # Inputs are broadcast unless their ranks and channels are the same.
    shapes = [value.shape for value in _carried(node)]
    if len(shapes) == 1:
        return True
    known = [tuple(shape) for shape in shapes if shape is not None and len(shape) > CHANNEL_AXIS]
    return len(known) == len(shapes) and len({(len(shape), shape[CHANNEL_AXIS]) for shape in known}) == 1


def _holds_zero(clip: ir.Node) -> bool:
    """Whether the bounds of a Clip are known, and zero lies between them."""

    def within(index: int, holds: Callable[[float], bool]) -> bool:
        if len(clip.inputs) <= index or clip.inputs[index] is None:
            return True
        bound = fixed_array(clip.inputs[index])
        return bound is not None and bool(np.size(bound) == 1 and holds(float(np.ravel(bound)[0])))

    # Before opset 11 the bounds are attributes.
    plain = "min" not in clip.attributes and "max" not in clip.attributes
    return plain and within(1, lambda low: low <= 0) and within(2, lambda high: high >= 0)


def _producer(node: ir.Node) -> Producer | None:
    if not _is_standard(node) or node.op_type not in ("Conv", "Gemm"):
        return None
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or not _is_own(weight) or (bias is not None and not _is_own(bias)):
        return None
    if node.op_type == "Conv" and node.attributes.get_int("group", 1) != 1:
        return None
    output_axis = 0 if node.op_type == "Conv" or node.attributes.get_int("transB", 0) != 0 else 1
    # A Gemm broadcasts a bias of any other shape.
    if bias is not None and tuple(_lengths(bias)) != (_lengths(weight)[output_axis],):
        return None
    return Producer(node=node, weight=weight, output_axis=output_axis, bias=bias)


def _is_own(value: ir.Value) -> bool:
    """Whether it is an initializer that one operator reads, once, and nobody sees from outside."""
    return (
        value.is_initializer()
        and value.const_value is not None
        and len(value.uses()) == 1
        and not value.is_graph_output()
        and not value.is_graph_input()
    )


def _lengths(value: ir.Value) -> tuple[int, ...]:
    return tuple(stored_tensor(value).shape.numpy())


def _is_standard(node: ir.Node) -> bool:
    return node.domain in ("", "ai.onnx")
