"""The form in which graphs are evaluated and bounded: one output for each operator, numbers where the file computes numbers."""

from dataclasses import replace

import numpy as np

from masksparse_deploy.graph.model import Array, Graph, Node
from masksparse_deploy.graph.nodes import apply_node
from masksparse_deploy.graph.splits import expand_splits

__all__ = ["simplified"]

# What the bodies of ONNX functions do with numbers such as the 2 in the square root of 2.
_ARITHMETIC = ("Add", "Div", "Identity", "Mul", "Neg", "Sqrt", "Sub", "Sum")


def simplified(graph: Graph) -> Graph:
    """The same graph with a Slice for each output of a Split, and without operators that compute a number from numbers.

    Numbers are computed in float64. Constants with more than one element stay, and so does what computes with them.
    """
    graph = expand_splits(graph)
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for node in graph.nodes:
        taken = node.inputs[:1] if node.op == "CastLike" else node.inputs  # the second input tells the type only
        numbers = [constants.get(name) for name in taken]
        known = [number.astype(np.float64) for number in numbers if number is not None and _is_number(number)]
        if node.domain or not numbers or len(known) < len(numbers) or node.op not in (*_ARITHMETIC, "CastLike"):
            nodes.append(node)
        else:
            with np.errstate(all="ignore"):  # what is infinite or NaN shows where it is used
                value = known[0] if node.op == "CastLike" else apply_node(node, known, batch=None)
            constants[node.outputs[0]] = np.asarray(value)
    return graph if len(nodes) == len(graph.nodes) else replace(graph, nodes=tuple(nodes), constants=constants)


def _is_number(array: Array) -> bool:
    return array.size == 1 and array.dtype.name.startswith(("float", "bfloat"))
