"""Reading gathered 1xN layers back: the dense weight that a grouped convolution over selected channels stands for."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Node, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places
from masksparse_deploy.rewrite.trace import CHANNEL_AXIS, Held, Trace, same_array, same_attributes

__all__ = ["read_convolution", "read_selection"]


def read_selection(trace: Trace, node: Node) -> bool:
    """A Gather or Slice of channels by constants, whose result the sparse file does not have."""
    if node.domain or len(node.outputs) != 1 or node.outputs[0] in trace.producers:
        return False
    source = trace.read(node.inputs[0])
    places = _places(trace, node, source)
    if source is None or places is None:
        return False
    (name,) = node.outputs
    trace.held[name] = Held(source.tensor, places)
    trace.helpers[name] = False
    return True


def read_convolution(trace: Trace, node: Node) -> bool:
    """A Conv in place of the sparse file's: true if it is one, with what is wrong with it among the findings."""
    twin = trace.producers.get(node.outputs[0])
    if (
        twin is None
        or node.domain
        or (node.op, node.outputs) != ("Conv", twin.outputs)
        or (twin.op, twin.domain) != ("Conv", "")
    ):
        return False
    source = trace.read(node.inputs[0])
    sparse_scope, rewritten_scope = trace.scopes
    dense, grouped = sparse_scope.layer(twin), rewritten_scope.layer(node)
    if source is None or dense is None or grouped is None:
        return False
    wrong = _wrong(trace, source, dense, grouped)
    if wrong:
        trace.findings.append(f"Conv {node.name}: {wrong}")
    return True


def _places(trace: Trace, node: Node, source: Held | None) -> npt.NDArray[np.int64] | None:
    """The channels of the sparse file's tensor that are selected; None where they are not known."""
    count = None if source is None else trace.channel_count(source.tensor)
    if source is None or count is None:
        return None
    known = np.arange(count) if source.channels is None else source.channels
    parameters = [trace.constant(name) for name in node.inputs[1:]]
    if node.op == "Gather" and node.attributes.get("axis", 0) == CHANNEL_AXIS:
        (indices,) = parameters
        if indices is None or indices.ndim != 1 or indices.size == 0 or max(indices.max(), ~indices.min()) >= len(known):
            return None
        return known[indices]
    if node.op == "Slice" and len(parameters) >= 3 and all(array is not None and array.size == 1 for array in parameters):
        start, end, axis, step = (int(array[0]) for array in (*parameters, np.ones(1))[:4] if array is not None)
        return known[start:end:step] if axis == CHANNEL_AXIS and step else None
    return None


def _wrong(trace: Trace, source: Held, dense: WeightedLayer, grouped: WeightedLayer) -> str:
    """What makes the convolution another one than the sparse file's; empty if nothing does."""
    if source.tensor != dense.node.inputs[0]:
        return f"it reads {source.tensor}, in the sparse file {dense.node.inputs[0]}"
    if dense.groups != 1:
        return "it has groups in the sparse file already, and is another one here"
    if not same_attributes(grouped.node.attributes, dense.node.attributes, but=("group",)):
        return f"it has the attributes {dict(grouped.node.attributes)}, in the sparse file {dict(dense.node.attributes)}"
    if (grouped.bias is None) != (dense.bias is None):
        return "it has a bias in one of the files only"
    if grouped.bias is not None and dense.bias is not None and not same_array(grouped.bias, dense.bias):
        return "it has another bias"
    channels = np.arange(trace.channel_count(source.tensor) or 0) if source.channels is None else source.channels
    return _wrong_weights(channels, dense.weight, grouped.weight, grouped.groups)


def _wrong_weights(
    channels: npt.NDArray[np.int64], dense: npt.NDArray[np.generic], grouped: npt.NDArray[np.generic], groups: int
) -> str:
    """Put the dense weight together from the groups' and compare them."""
    out_channels, read = grouped.shape[:2]
    expected = (*dense.shape[:1], read, *dense.shape[2:])
    if grouped.shape != expected or grouped.dtype != dense.dtype or out_channels % groups or len(channels) != groups * read:
        return (
            f"{groups} groups with weights {grouped.dtype} {grouped.shape} over {len(channels)} channels do not make weights "
            f"{dense.dtype} {dense.shape}"
        )
    together = np.zeros_like(dense)
    size = out_channels // groups
    for group in range(groups):
        rows = slice(group * size, (group + 1) * size)
        own = channels[group * read : (group + 1) * read]
        used = nonzero_places(grouped[rows]).any(axis=(0, *range(2, grouped.ndim)))
        if len(np.unique(own[used])) < np.count_nonzero(used):
            return f"group {group} reads a channel twice"
        together[rows, own[used]] = grouped[rows, used]
    places = nonzero_places(dense)
    # a zero has no sign that products with it would bring into the sum
    if (places != nonzero_places(together)).any() or together[places].tobytes() != dense[places].tobytes():
        changed = (together != dense).any(axis=tuple(range(1, dense.ndim)))
        return f"its weights are not the sparse file's, in {max(int(changed.sum()), 1)} of {out_channels} output channels"
    return ""
