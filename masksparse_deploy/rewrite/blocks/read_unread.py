"""Reading back what computes only some channels of a tensor of the sparse file: convolutions, and operators behind them.

Which channels those are is an annotation, a claim that the weights must bear out: rows of the dense weight are compared bit for
bit. That a channel left out is read by nobody follows from the readers, each of which is read back from the channels held.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import Node
from masksparse_deploy.rewrite.blocks.read_back import computed_bias, wrong_convolution
from masksparse_deploy.rewrite.trace import Held, Trace, same_array, same_attributes

__all__ = ["read_channelwise", "read_fewer_outputs"]

_IMAGE_RANK = 4
# Operators whose channel c is a function of channel c of what they read, the same function for every channel.
_CHANNELWISE = {
    "Abs",
    "Add",
    "Celu",
    "Clip",
    "Div",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "MaxPool",
    "Mish",
    "Mul",
    "Neg",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Softsign",
    "Sub",
    "Tanh",
    "ThresholdedRelu",
}


def read_fewer_outputs(trace: Trace, node: Node) -> bool:
    """A Conv that says which channels of a convolution of the sparse file it computes."""
    twin = trace.producers.get(node.metadata.get(keys.HELD_TENSOR, ""))
    if (node.op, node.domain) != ("Conv", "") or node.outputs[0] in trace.producers or twin is None or twin.op != "Conv":
        return False
    dense, fewer = trace.scopes[0].layer(twin), trace.scopes[1].layer(node)
    source = trace.read(node.inputs[0])
    channels = None if dense is None else _channels(node, len(dense.weight))
    if source is None or dense is None or fewer is None or channels is None:
        return False
    wrong = "its bias is computed, and which channels of it are added is not known" if computed_bias(dense) else ""
    bias = None if dense.bias is None else dense.bias[channels]
    wrong = wrong or wrong_convolution(trace, source, replace(dense, weight=dense.weight[channels], bias=bias), fewer)
    if wrong:
        trace.findings.append(f"Conv {node.name}: {wrong}")
    _hold(trace, node, Held(twin.outputs[0], channels))
    return True


def read_channelwise(trace: Trace, node: Node) -> bool:
    """An operator of the sparse file on some of the channels, whose result the sparse file does not have."""
    if node.domain or node.op not in _CHANNELWISE or len(node.outputs) != 1 or node.outputs[0] in trace.producers:
        return False
    held = [trace.read(name) for name in node.inputs]
    known = [one.channels for one in held if one is not None and one.channels is not None and max(one.strides) == 1]
    if not known or not all(np.array_equal(known[0], other) for other in known):
        return False
    for twin in trace.sparse.nodes:
        if _is_same(trace, node, twin, held):
            _hold(trace, node, Held(twin.outputs[0], known[0]))
            return True
    return False


def _channels(node: Node, count: int) -> npt.NDArray[np.int64] | None:
    """The channels that a node says it computes; None if it says none of a tensor with so many."""
    words = node.metadata.get(keys.HELD_CHANNELS, "").split()
    if not words or not all(word.isdecimal() and len(word) < 10 and int(word) < count for word in words):
        return None
    return np.array([int(word) for word in words])


def _hold(trace: Trace, node: Node, held: Held) -> None:
    trace.held[node.outputs[0]] = held
    trace.helpers[node.outputs[0]] = False
    trace.partial.add(held.tensor)


def _is_same(trace: Trace, node: Node, twin: Node, held: list[Held | None]) -> bool:
    """Whether an operator of the sparse file does to whole tensors what `node` does to some of their channels."""
    if (node.op, len(node.inputs), 1) != (twin.op, len(twin.inputs), len(twin.outputs)) or twin.domain:
        return False
    if not same_attributes(node.attributes, twin.attributes):
        return False
    return all(_is_same_input(trace, found, name, own) for found, name, own in zip(node.inputs, twin.inputs, held, strict=True))


def _is_same_input(trace: Trace, found: str, name: str, held: Held | None) -> bool:
    expected, constant = trace.sparse.constants.get(name), trace.constant(found)
    if expected is None and constant is None:
        is_held = held is not None and held.channels is not None and held.tensor == name and max(held.strides) == 1
        return is_held or found == name == ""
    # one number is the same for every channel; one of more axes than an image would add axes to the result
    is_number = constant is not None and constant.size == 1 and constant.ndim <= _IMAGE_RANK
    return is_number and expected is not None and constant is not None and same_array(expected, constant)
