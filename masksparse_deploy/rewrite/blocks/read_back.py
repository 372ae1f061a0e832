"""Reading gathered 1xN layers back: the dense weight that a grouped convolution over selected channels stands for."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Node, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places
from masksparse_deploy.rewrite.trace import CHANNEL_AXIS, Held, Trace, same_array, same_attributes

__all__ = [
    "computed_bias",
    "held_channels",
    "read_convolution",
    "read_selection",
    "read_subsampling",
    "wrong_convolution",
    "wrong_setting",
    "wrong_weights",
]


def read_selection(trace: Trace, node: Node) -> bool:
    """A Gather or Slice of channels by constants, whose result the sparse file does not have."""
    if node.domain or len(node.outputs) != 1 or node.outputs[0] in trace.producers:
        return False
    source = trace.read(node.inputs[0])
    places = _places(trace, node, source)
    if source is None or places is None:
        return False
    (name,) = node.outputs
    trace.held[name] = Held(source.tensor, places, source.strides)
    trace.helpers[name] = False
    return True


def read_subsampling(trace: Trace, node: Node) -> bool:
    """An average over windows of one position each, every so many positions, whose result the sparse file does not have."""
    if node.domain or node.op != "AveragePool" or node.outputs[0] in trace.producers:
        return False
    source, attributes = trace.read(node.inputs[0]), node.attributes
    # windows of one position without padding: nothing else may be said of them
    if source is None or attributes.keys() != {"kernel_shape", "strides"} or attributes["kernel_shape"] != (1, 1):
        return False
    if len(attributes["strides"]) != len(source.strides):
        return False
    strides = zip(source.strides, attributes["strides"], strict=True)
    trace.held[node.outputs[0]] = Held(source.tensor, source.channels, tuple(one * other for one, other in strides))
    trace.helpers[node.outputs[0]] = False
    return True


def read_convolution(trace: Trace, node: Node) -> bool:
    """A Conv in place of the sparse file's: true if it is one, with what is wrong with it among the findings."""
    twin = trace.twin(node)
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
    wrong = wrong_convolution(trace, source, dense, grouped)
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
    if any(array is not None and array.dtype.kind != "i" for array in parameters):
        return None
    if node.op == "Gather" and node.attributes.get("axis", 0) == CHANNEL_AXIS:
        (indices,) = parameters
        if indices is None or indices.ndim != 1 or indices.size == 0 or max(indices.max(), ~indices.min()) >= len(known):
            return None
        return known[indices]
    if node.op == "Slice" and len(parameters) >= 3 and all(array is not None and array.shape == (1,) for array in parameters):
        start, end, axis, step = (int(array[0]) for array in (*parameters, np.ones(1))[:4] if array is not None)
        return known[start:end:step] if axis == CHANNEL_AXIS and step else None
    return None


def wrong_convolution(trace: Trace, source: Held, dense: WeightedLayer, grouped: WeightedLayer) -> str:
    """What makes the convolution another one than the sparse file's; empty if nothing does."""
    wrong = wrong_setting(source, dense, grouped)
    if wrong:
        return wrong
    if grouped.bias is not None and dense.bias is not None and not same_array(grouped.bias, dense.bias):
        return "it has another bias"
    computed = computed_bias(dense)
    held = trace.read(computed_bias(grouped))
    if computed and (held is None or held.tensor != computed or not held.is_whole):
        return f"its bias is not {computed} of the sparse file"
    return wrong_weights(held_channels(trace, source), dense.weight, grouped.weight, grouped.groups)


def wrong_setting(source: Held, dense: WeightedLayer, grouped: WeightedLayer) -> str:
    """What is wrong with a convolution over channels that are held, or with a part of one, besides its constants."""
    if source.tensor != dense.node.inputs[0]:
        return f"it reads {source.tensor}, in the sparse file {dense.node.inputs[0]}"
    if dense.groups != 1:
        return "it has groups in the sparse file already, and is another one here"
    if dense.weight.ndim != 4:
        return "it is no two-dimensional convolution, and is another one here"
    found, expected = grouped.node.attributes, dense.node.attributes
    own, whole = found.get("strides", (1, 1)), tuple(expected.get("strides", (1, 1)))
    strides = tuple(one * other for one, other in zip(source.strides, own, strict=False))
    is_strided_so = len(own) == len(source.strides) and strides == whole
    if not same_attributes(found, expected, but=("group", "strides")) or not is_strided_so:
        return f"it has the attributes {dict(found)}, in the sparse file {dict(expected)}"
    is_padded = any(expected.get("pads", ())) or expected.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID")
    if max(source.strides) > 1 and (is_padded or set(dense.weight.shape[2:]) != {1}):
        return "its windows need positions that it does not read"
    if (grouped.bias is None, not computed_bias(grouped)) != (dense.bias is None, not computed_bias(dense)):
        return "it has a bias, or a computed one, in one of the files only"
    return ""


def computed_bias(layer: WeightedLayer) -> str:
    """The tensor that a convolution adds where that is no constant; "" where it is one, or there is none."""
    return layer.node.inputs[2] if layer.bias is None and len(layer.node.inputs) > 2 else ""


def held_channels(trace: Trace, held: Held) -> npt.NDArray[np.int64]:
    """The channels of the sparse file's tensor that are held."""
    return np.arange(trace.channel_count(held.tensor) or 0) if held.channels is None else held.channels


def wrong_weights(
    channels: npt.NDArray[np.int64], dense: npt.NDArray[np.generic], grouped: npt.NDArray[np.generic], groups: int
) -> str:
    """Put the dense weight together from the groups' and compare them: what is wrong, empty if nothing is."""
    out_channels, read = grouped.shape[:2]
    expected = (*dense.shape[:1], read, *dense.shape[2:])
    divides = groups > 0 and out_channels % groups == 0 and len(channels) == groups * read
    if grouped.shape != expected or grouped.dtype != dense.dtype or not divides:
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
