"""Are two ONNX files the same network but for the values of its weights?"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["changed_constants", "structural_differences"]


def structural_differences(dense: Graph, sparse: Graph) -> tuple[str, ...]:
    """What differs besides the values of constants and the annotations, in words; empty for the same graph.

    Compared are inputs, outputs, opsets, the nodes in order (name, operator, edges, attributes), and the names, shapes and
    dtypes of constants.
    """
    return tuple(_differences(dense, sparse))


def changed_constants(dense: Graph, sparse: Graph) -> tuple[str, ...]:
    """Names of the constants of both graphs whose values are not identical, bit for bit."""
    both = dense.constants.keys() & sparse.constants.keys()
    return tuple(sorted(name for name in both if dense.constants[name].tobytes() != sparse.constants[name].tobytes()))


def _differences(dense: Graph, sparse: Graph) -> Iterator[str]:
    for what in ("inputs", "outputs", "opsets"):
        ours, theirs = getattr(dense, what), getattr(sparse, what)
        if ours != theirs:
            yield f"{what}: {ours} and {theirs}"
    if len(dense.nodes) != len(sparse.nodes):
        yield f"{len(dense.nodes)} and {len(sparse.nodes)} nodes"
    for one, other in zip(dense.nodes, sparse.nodes, strict=False):
        if _identity(one) != _identity(other):
            yield f"node {one.name} ({one.op}) and node {other.name} ({other.op})"
    for name in sorted(dense.constants.keys() ^ sparse.constants.keys()):
        yield f"constant {name}: in one file only"
    for name in sorted(dense.constants.keys() & sparse.constants.keys()):
        ours, theirs = dense.constants[name], sparse.constants[name]
        if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            yield f"constant {name}: {ours.dtype} {ours.shape} and {theirs.dtype} {theirs.shape}"


def _identity(node: Node) -> tuple[Any, ...]:
    attributes = {name: _comparable(value) for name, value in node.attributes.items()}
    return node.name, node.op, node.domain, node.inputs, node.outputs, attributes


def _comparable(value: Any) -> Any:
    return (value.dtype.str, value.shape, value.tobytes()) if isinstance(value, np.ndarray) else value
