"""Reading layers back that are computed in parts: convolutions over some groups each, and a Concat of their outputs."""

import numpy as np

from masksparse_deploy.graph.model import Node, WeightedLayer
from masksparse_deploy.rewrite.blocks.read_back import computed_bias, held_channels, wrong_setting, wrong_weights
from masksparse_deploy.rewrite.trace import CHANNEL_AXIS, Held, Trace, same_array

__all__ = ["read_parts"]


def read_parts(trace: Trace, node: Node) -> bool:
    """A Conv whose result the sparse file does not have, or the Concat of such in place of the sparse file's Conv."""
    if node.domain or len(node.outputs) != 1:
        return False
    twin = trace.twin(node)
    if node.op == "Conv" and twin is None:
        source, layer = trace.read(node.inputs[0]), trace.scopes[1].layer(node)
        if source is None or layer is None:
            return False
        trace.parts[node.outputs[0]] = source, layer
        trace.helpers[node.outputs[0]] = False
        return True
    dense = None if twin is None or twin.op != "Conv" else trace.scopes[0].layer(twin)
    if dense is None or (node.op, node.attributes) != ("Concat", {"axis": CHANNEL_AXIS}):
        return False
    if not all(name in trace.parts for name in node.inputs):
        return False
    trace.helpers.update(dict.fromkeys(node.inputs, True))
    wrong = _wrong(trace, dense, [trace.parts[name] for name in node.inputs])
    if wrong:
        trace.findings.append(f"Concat {node.name}: {wrong}")
    return True


def _wrong(trace: Trace, dense: WeightedLayer, parts: list[tuple[Held, WeightedLayer]]) -> str:
    """What makes the parts together another convolution than the sparse file's; empty if nothing does."""
    for source, part in parts:
        wrong = wrong_setting(source, dense, part)
        if wrong:
            return f"its part {part.node.name}: {wrong}"
    if any(part.groups < 1 for _, part in parts):
        return "a part of it has no groups"
    sizes = {part.weight.shape[0] / part.groups for _, part in parts}
    shapes = {part.weight.shape[1:] for _, part in parts}
    if len(sizes) > 1 or len(shapes) > 1:
        return "its parts have groups of different sizes"
    if computed_bias(dense):
        return "its bias is computed, and that of its parts is not known"
    biases = [part.bias for _, part in parts if part.bias is not None]
    if dense.bias is not None and not same_array(np.concatenate(biases), dense.bias):
        return "it has another bias"
    channels = np.concatenate([held_channels(trace, source) for source, _ in parts])
    weight = np.concatenate([part.weight for _, part in parts])
    return wrong_weights(channels, dense.weight, weight, sum(part.groups for _, part in parts))
