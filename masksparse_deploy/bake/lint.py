"""What is sparse in any ONNX file, what could be, and why the rest never will."""

import math
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from masksparse_deploy.bake.constants import fixed_values, see_through
from masksparse_deploy.bake.inspect_layer import HARDWARE_PATTERN, Finding, inspect_layer
from masksparse_deploy.core.artifacts.baking import LintLayer, LintReport
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.reader import read_graph, weighted_layers

__all__ = ["lint", "lint_graph"]

_PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_CONVOLUTIONS = ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv")
_MATRIX_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")
# Operators with weights that are not looked into: position of the weight among the inputs, and why.
_UNREAD = {
    "ConvTranspose": (1, "transposed convolution: no sparse kernels"),
    "ConvInteger": (1, "quantized operator: not read, only DequantizeLinear before a Conv is"),
    "QLinearConv": (3, "quantized operator: not read, only DequantizeLinear before a Conv is"),
    "MatMulInteger": (1, "quantized operator: not read, only DequantizeLinear before a MatMul is"),
    "QLinearMatMul": (3, "quantized operator: not read, only DequantizeLinear before a MatMul is"),
    "DeformConv": (1, "deformable convolution: no sparse kernels"),
    "GRU": (1, "recurrent operator: not read"),
    "LSTM": (1, "recurrent operator: not read"),
    "RNN": (1, "recurrent operator: not read"),
}


def lint(path: Path) -> LintReport:
    """Look at every layer with weights of an ONNX file, one of ours or not.

    Raises:
        UsageError: there is no such file, or its weights lie in other files.
        ArtifactError: damaged, or annotated under another schema version.
    """
    return lint_graph(read_graph(path), name=str(path))


def lint_graph(graph: Graph, *, name: str) -> LintReport:
    """The same for a graph that was read already; `name` is used in messages."""
    schema = graph.metadata.get(keys.SCHEMA_VERSION, keys.SCHEMA)
    if schema != keys.SCHEMA:
        raise ArtifactError(
            f"{name} is annotated under schema version {schema}; this version reads {keys.SCHEMA}: use the version of "
            "masksparse that baked it"
        )
    layers = []
    saved_count: float = 0
    for layer, pattern_density in _lint_layers(graph):
        layers.append(layer)
        if layer.state == "conforming" and layer.mac_count is not None:
            saved_count += layer.mac_count * (1 - pattern_density)
    counts = [layer.mac_count for layer in layers if layer.mac_count is not None]
    total = sum(counts)
    known = total > 0 and len(counts) == len(layers)
    return LintReport(
        file_sha256=graph.sha256,
        layers=tuple(layers),
        ok=not any(layer.state == "broken claim" for layer in layers),
        amdahl_limit=total / (total - saved_count) if known else None,
    )


def _lint_layers(graph: Graph) -> Iterator[tuple[LintLayer, float]]:
    """Every layer with the density that its kernels would work at, in graph order."""
    seen, origins = see_through(graph)
    # Edges have unique names, nodes need not.
    readable = {layer.node.outputs[0]: layer for layer in weighted_layers(seen)}
    readers = _readers(seen)
    fixed = fixed_values(seen)
    for node in graph.nodes:
        if node.outputs and node.outputs[0] in readable:
            yield _readable_layer(seen, readable[node.outputs[0]], origins, readers)
        else:
            unread = _unread_weight(graph, node, fixed)
            if unread is not None:
                yield _unread_layer(graph, node, *unread), 1.0
        for body in _bodies(node):
            for proto in body.node:
                if proto.op_type in (*_PRODUCTS, *_UNREAD):
                    why = f"inside the body of {node.op} {node.name}: not read"
                    weight = proto.input[1] if len(proto.input) > 1 else ""
                    yield _row(proto.name or proto.op_type, proto.op_type, weight, (), _not_read(why, 1.0), None), 1.0


def _readable_layer(
    graph: Graph, layer: WeightedLayer, origins: Mapping[str, str], readers: Mapping[str, tuple[str, ...]]
) -> tuple[LintLayer, float]:
    stored_name = origins.get(layer.weight_name, layer.weight_name)
    finding = inspect_layer(
        layer,
        stored_name=stored_name,
        node_notes=_ours(layer.node.metadata),
        weight_notes=_ours(graph.constant_metadata.get(layer.weight_name, {})),
        other_readers=readers.get(layer.weight_name, ()),
    )
    mac_count = _mac_count(graph, layer.node, layer.weight.shape)
    row = _row(layer.node.name, layer.node.op, stored_name, layer.weight.shape, finding, mac_count)
    return row, finding.pattern.density


def _unread_weight(graph: Graph, node: Node, fixed: Set[str]) -> tuple[str, str] | None:
    """Name of the weight of an operator that is not looked into, and why it is not; None for one that has no weight."""
    if node.domain:
        name = next((name for name in node.inputs if name in graph.constants and graph.constants[name].ndim > 1), None)
        return None if name is None else (name, f"operator of the domain {node.domain}: not read")
    if node.op in _UNREAD:
        position, why = _UNREAD[node.op]
        return node.inputs[position], why
    if node.op == "Conv" or (node.op in _PRODUCTS and node.inputs[1] in fixed and node.inputs[0] not in fixed):
        return node.inputs[1], "the weight is computed while the network runs: not read"
    if node.op in _PRODUCTS and node.inputs[0] in fixed and node.inputs[1] not in fixed:
        return node.inputs[0], "the weight is the first factor: only second factors are read"
    if node.op == "Einsum":
        name = next((name for name in node.inputs if name in fixed), None)
        return None if name is None else (name, "Einsum: not read")
    return None


def _unread_layer(graph: Graph, node: Node, weight_name: str, why: str) -> LintLayer:
    weight = graph.constants.get(weight_name)
    shape = weight.shape if weight is not None else graph.shapes.get(weight_name, ())
    known = tuple(length for length in shape if length is not None)
    known = known if len(known) == len(shape) else ()
    density = float(np.count_nonzero(weight) / max(weight.size, 1)) if weight is not None else 1.0
    # The shape of a first factor does not tell how often its weights are used.
    mac_count = None if weight_name == node.inputs[0] else _mac_count(graph, node, known)
    return _row(node.name, node.op, weight_name, known, _not_read(why, density), mac_count)


def _row(node: str, op: str, weight: str, shape: tuple[int, ...], finding: Finding, mac_count: int | None) -> LintLayer:
    return LintLayer(
        node=node,
        op=op,
        weight=weight,
        shape=shape,
        state=finding.state,
        why=finding.why,
        density=finding.density,
        group_count=finding.group_count,
        violation_count=finding.violation_count,
        mac_count=mac_count,
    )


def _not_read(why: str, density: float) -> Finding:
    return Finding(state="not eligible", why=why, density=density, group_count=0, violation_count=0, pattern=HARDWARE_PATTERN)


def _mac_count(graph: Graph, node: Node, weight_shape: tuple[int, ...]) -> int | None:
    """Multiply-accumulates for one sample, zeros included; None where the shapes in the file do not tell.

    Every weight is used once for each position of the output (of the input, for a transposed convolution); the first axis
    is the batch.
    """
    convolves = node.op in _CONVOLUTIONS and len(weight_shape) > 2
    if node.domain or not (convolves or (node.op in _MATRIX_PRODUCTS and len(weight_shape) == 2)):
        return None
    shape = graph.shapes.get(node.inputs[0] if node.op == "ConvTranspose" else node.outputs[0])
    if shape is None:
        return None
    positions = shape[2:] if convolves else shape[1:-1]
    known = [length for length in positions if length is not None]
    return math.prod(weight_shape) * math.prod(known) if len(known) == len(positions) else None


def _ours(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith(keys.PREFIX)}


def _readers(graph: Graph) -> Mapping[str, tuple[str, ...]]:
    """For each constant the operators that read it as something else than the weight of a product, in graph order."""
    readers: dict[str, list[str]] = {}
    for node in graph.nodes:
        for position, name in enumerate(node.inputs):
            is_weight = node.domain == "" and node.op in _PRODUCTS and position == 1
            if name in graph.constants and not is_weight and graph.constants.keys().isdisjoint(node.outputs):
                readers.setdefault(name, []).append(f"{node.op} {node.name}")
    return {name: tuple(found) for name, found in readers.items()}


def _bodies(node: Node) -> Iterator[onnx.GraphProto]:
    """The bodies of If, Loop and Scan, nested ones included."""
    pending = [value for attribute in node.attributes.values() for value in _several(attribute)]
    while pending:
        body = pending.pop(0)
        if isinstance(body, onnx.GraphProto):
            yield body
            pending += [graph for proto in body.node for entry in proto.attribute for graph in (entry.g, *entry.graphs)]


def _several(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)
