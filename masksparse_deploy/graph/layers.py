"""The layers of a graph that multiply by a constant weight, and which constant that is."""

from collections import Counter
from collections.abc import Iterator

import onnx

from masksparse_deploy.graph.constants import Origins
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer

__all__ = ["PRODUCTS", "each_layer", "weighted_layers"]

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def weighted_layers(graph: Graph) -> tuple[WeightedLayer, ...]:
    """All Conv, ConvTranspose, Gemm and MatMul nodes whose second input is a constant, in graph order.

    A constant is an initializer or a Constant node, also behind Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze and
    DequantizeLinear (or QuantizeLinear and DequantizeLinear) with constant parameters.

    Raises:
        ArtifactError: an operator that the weight passes through has parameters that do not fit it.
    """
    return tuple(each_layer(graph))


def each_layer(graph: Graph) -> Iterator[WeightedLayer]:
    """The same, one at a time: what is dequantized need not be in memory all at once."""
    origins = Origins(graph)
    counts = _consumer_counts(graph, origins)
    for node in graph.nodes:
        if node.domain or node.op not in PRODUCTS or len(node.inputs) < 2:
            continue
        origin = origins.find(node.inputs[1])
        if origin is None:
            continue
        weight, layout, quantized = origin.compute()
        bias = origins.find(node.inputs[2]) if len(node.inputs) > 2 else None
        yield WeightedLayer(
            node=node,
            weight_name=node.inputs[1],
            weight=weight,
            stored_name=origin.name,
            stored=origin.stored,
            route=origin.route,
            layout=layout,
            quantized=quantized,
            bias=None if bias is None else bias.compute()[0],
            group_axis=_group_axis(node, weight.ndim),
            groups=int(node.attributes.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1,
            consumer_count=counts[origin.name],
        )


def _group_axis(node: Node, rank: int) -> int:
    """Where the input channels lie; MatMul and Gemm multiply x (n, k) by B (k, m), transB stores B as (m, k)."""
    if node.op == "Conv" or (node.op == "Gemm" and node.attributes.get("transB", 0)):
        return 1
    return 0 if node.op == "ConvTranspose" else max(rank - 2, 0)


def _consumer_counts(graph: Graph, origins: Origins) -> Counter[str]:
    """How often each stored constant is read by operators that are not merely on the way of a constant."""
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        if node.outputs and origins.source(node.outputs[0]) is not None:
            continue
        for name in (*node.inputs, *_read_by_bodies(node)):
            source = origins.source(name)
            if source is not None:
                counts[source] += 1
    return counts


def _read_by_bodies(node: Node) -> Iterator[str]:
    """Names that the bodies of If, Loop and Scan read, those of the outer graph included."""
    for value in node.attributes.values():
        for body in value if isinstance(value, tuple) else (value,):
            if isinstance(body, onnx.GraphProto):
                yield from _names_read(body)


def _names_read(graph: onnx.GraphProto) -> Iterator[str]:
    for proto in graph.node:
        yield from proto.input
        for attribute in proto.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _names_read(body)
