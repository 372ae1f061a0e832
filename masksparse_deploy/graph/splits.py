"""Operators with several outputs, replaced by operators with one: what evaluates graphs knows no others."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["expand_splits"]


def expand_splits(graph: Graph) -> Graph:
    """The same graph with a Slice for each output of every Split whose parts are known; other Splits stay."""
    if all(node.op != "Split" or node.domain for node in graph.nodes):
        return graph
    constants = dict(graph.constants)
    nodes: list[Node] = []
    for node in graph.nodes:
        lengths = _lengths(node, graph) if node.op == "Split" and not node.domain else None
        if lengths is None:
            nodes.append(node)
            continue
        axis = np.array([int(node.attributes.get("axis", 0))], dtype=np.int64)
        for index, slice_node in _slices(node):
            limits = (np.array([sum(lengths[: index + more])], dtype=np.int64) for more in (0, 1))
            constants.update(zip(slice_node.inputs[1:], (*limits, axis), strict=True))
            nodes.append(slice_node)
    return replace(graph, nodes=tuple(nodes), constants=constants)


def _slices(node: Node) -> Iterator[tuple[int, Node]]:
    for index, output in enumerate(node.outputs):
        if output:
            name = f"{node.name or node.outputs[0]}.part{index}"
            inputs = (node.inputs[0], *(f"{name}.{what}" for what in ("start", "end", "axis")))
            yield index, replace(node, name=name, op="Slice", inputs=inputs, outputs=(output,), attributes={})


def _lengths(node: Node, graph: Graph) -> list[int] | None:
    """The length of each part along the axis, None where the file does not tell."""
    given: Any = node.attributes.get("split")
    if given is None and len(node.inputs) > 1 and node.inputs[1]:
        given = graph.constants.get(node.inputs[1])
        if given is None:
            return None
    if given is not None:
        return [int(length) for length in np.asarray(given, dtype=np.int64)]
    shape = graph.shapes.get(node.inputs[0], ())
    axis = int(node.attributes.get("axis", 0))
    whole = shape[axis] if -len(shape) <= axis < len(shape) else None
    if whole is None:
        return None
    count = int(node.attributes.get("num_outputs", len(node.outputs)))
    if count < 1:
        return None
    # ONNX: equal parts, the last one smaller where the length is no multiple
    each = -(-whole // count)
    return [max(min(each, whole - start * each), 0) for start in range(count)]
