"""Computing a gathered convolution in parts, a few of its groups at a time.

The groups of a 1x1 convolution read, all together, many times the channels of its input. Gathered all at once they fill the
processor's caches, are written to memory and read back; a part at a time they stay in the cache (docs/measurements/blocks.md).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.blocks.layout import GroupLayout
from masksparse_deploy.rewrite.names import Names, add_constant

__all__ = ["compute_in_parts"]

_CHANNEL_AXIS = 1

# The tensor that holds channels of the layer's input, in their order; the first argument is the name of the part.
Select = Callable[[str, npt.NDArray[np.int64]], ir.Value]


def compute_in_parts(names: Names, node: ir.Node, layout: GroupLayout, part_count: int, select: Select) -> None:
    """Replace a convolution by several, each of some groups, and a Concat of their outputs under the name of the layer's.

    Args:
        names: for new nodes and tensors.
        node: the Conv of the dense weight; it is removed.
        layout: its groups.
        part_count: how many parts, as equal in groups as they can be; at least 2, at most one for each group.
        select: adds what selects the channels that a part reads, before `node`.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    (output,) = node.outputs
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    assert weight is not None
    dtype = _constant(weight).dtype
    rows = len(layout.weight) // layout.group_count
    parts = []
    for index in range(part_count):
        first, end = (number * layout.group_count // part_count for number in (index, index + 1))
        stem = f"{node.name}/part{index}"
        own = slice(first * rows, end * rows)
        inputs = [select(stem, layout.channels[first:end].reshape(-1))]
        inputs.append(add_constant(graph, names, f"{weight.name}/groups/part{index}", layout.weight[own], dtype=dtype))
        if bias is not None:
            values = _constant(bias).numpy()[own]
            inputs.append(add_constant(graph, names, f"{bias.name}/part{index}", values, dtype=dtype))
        part = ir.node(
            "Conv", inputs, attributes={**node.attributes, "group": ir.AttrInt64("group", end - first)}, name=names.unused(stem)
        )
        part.outputs[0].name, part.outputs[0].type = names.unused(f"{output.name}/part{index}"), output.type
        if output.shape is not None:
            part.outputs[0].shape = ir.Shape([(end - first) * rows if a == 1 else n for a, n in enumerate(output.shape)])
        graph.insert_before(node, part)
        parts.append(part.outputs[0])
    joined = ir.node("Concat", parts, {"axis": _CHANNEL_AXIS}, name=node.name)
    joined.metadata_props.update(node.metadata_props)
    ir.convenience.replace_nodes_and_values(graph, node, [node], [joined], node.outputs, joined.outputs)


def _constant(value: ir.Value) -> ir.TensorProtocol:
    tensor = ir.convenience.get_const_tensor(value)
    assert tensor is not None, "only convolutions of constants are split"
    return tensor
