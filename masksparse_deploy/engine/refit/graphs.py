"""Whether two ONNX files are the same network with other weights."""

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.model import Array, Graph, Node
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["changed_constants", "graph_differences", "require_same_graph"]

_SHOWN = 5


def require_same_graph(old: Graph, new: Graph, *, old_name: str, new_name: str) -> None:
    """Raise a UsageError that says what differs, unless the files are one network but for floating-point constants."""
    differences = graph_differences(old, new)
    if differences:
        rest = f"; and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise UsageError(
            f"{new_name} is not the network of {old_name} with other weights: {'; '.join(differences[:_SHOWN])}{rest}; "
            "build a new engine from it"
        )


def graph_differences(old: Graph, new: Graph) -> tuple[str, ...]:
    """What two graphs do not have in common, in words; values of weights apart."""
    return tuple(_differences(old, new, ""))


def changed_constants(old: Graph, new: Graph) -> tuple[str, ...]:
    """Names of the constants whose values differ, of two graphs that are otherwise the same."""
    return tuple(name for name, array in old.constants.items() if not _same(array, new.constants[name]))


def _differences(old: Graph, new: Graph, where: str) -> Iterable[str]:
    yield from _mapping(old.opsets, new.opsets, f"{where}operator set")
    yield from _mapping(old.inputs, new.inputs, f"{where}input")
    if old.outputs != new.outputs:
        yield f"{where}outputs {', '.join(new.outputs)} instead of {', '.join(old.outputs)}"
    if len(old.nodes) != len(new.nodes):
        yield f"{where}{len(new.nodes)} operators instead of {len(old.nodes)}"
    for before, after in zip(old.nodes, new.nodes, strict=False):
        yield from _node(before, after, where)
    yield from _constants(old, new, where)
    if len(old.bodies) == len(new.bodies):
        for ours, theirs in zip(old.bodies, new.bodies, strict=True):
            yield from _differences(ours.graph, theirs.graph, f"{where}in {ours.attribute} of {ours.node.name}: ")
    else:
        yield f"{where}{len(new.bodies)} bodies of operators instead of {len(old.bodies)}"


def _node(before: Node, after: Node, where: str) -> Iterable[str]:
    what = f"{where}operator {before.name or before.outputs[0]}"
    for field in ("name", "domain", "op", "inputs", "outputs"):
        ours, theirs = getattr(before, field), getattr(after, field)
        if ours != theirs:
            yield f"{what} has the {field} {theirs or 'none'} instead of {ours or 'none'}"
    keys = {*before.attributes, *after.attributes}
    changed = [key for key in sorted(keys) if not _same(before.attributes.get(key), after.attributes.get(key))]
    if changed:
        yield f"{what} has another {', '.join(changed)}"


def _constants(old: Graph, new: Graph, where: str) -> Iterable[str]:
    # weights and biases that are stored as integers; zero points are not among them
    quantized = {node.inputs[0] for node in old.nodes if node.op == "DequantizeLinear"}
    quantized |= {layer.stored_name for layer in weighted_layers(old) if layer.quantized is not None}
    for name in (*old.constants, *(name for name in new.constants if name not in old.constants)):
        ours, theirs = old.constants.get(name), new.constants.get(name)
        if ours is None or theirs is None:
            yield f"{where}the constant {name} is in the {'new' if ours is None else 'old'} file only"
        elif ours.shape != theirs.shape or ours.dtype != theirs.dtype:
            yield f"{where}{name} is {theirs.dtype} {theirs.shape} instead of {ours.dtype} {ours.shape}"
        elif ours.dtype.kind in "iub" and name not in quantized and not _same(ours, theirs):
            yield f"{where}{name}, which is no weight, has other values"


def _mapping(old: Mapping[str, Any], new: Mapping[str, Any], what: str) -> Iterable[str]:
    for key in (*old, *(key for key in new if key not in old)):
        ours, theirs = old.get(key), new.get(key)
        if ours != theirs:
            yield f"{what} {key or 'ai.onnx'} is {'missing' if theirs is None else theirs} instead of {ours}"


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, np.ndarray) and isinstance(theirs, np.ndarray):
        left: Array = ours
        return left.dtype == theirs.dtype and left.shape == theirs.shape and left.tobytes() == theirs.tobytes()
    if isinstance(ours, np.ndarray) or isinstance(theirs, np.ndarray):
        return False
    if isinstance(ours, tuple) and isinstance(theirs, tuple):
        return len(ours) == len(theirs) and all(_same(a, b) for a, b in zip(ours, theirs, strict=True))
    return bool(ours == theirs)
