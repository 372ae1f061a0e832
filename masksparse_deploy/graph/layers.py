"""The layers of a graph that multiply by a constant weight, and which constant that is."""

from collections import Counter
from collections.abc import Iterator

from masksparse_deploy.graph.constants import Origins
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer

__all__ = ["PRODUCTS", "Scope", "weighted_layers"]

PRODUCTS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


def weighted_layers(graph: Graph) -> tuple[WeightedLayer, ...]:
    """All Conv, ConvTranspose, Gemm and MatMul nodes whose second input is a constant, in graph order.

    A constant is an initializer or a Constant node, also behind Identity, Cast, Transpose, Reshape, Squeeze, Unsqueeze and
    DequantizeLinear (or QuantizeLinear and DequantizeLinear) with constant parameters. Layers in bodies of If, Loop and Scan
    are not among them; see Scope.

    Raises:
        ArtifactError: an operator that the weight passes through has parameters that do not fit it.
    """
    scope = Scope(graph)
    return tuple(layer for node in graph.nodes if (layer := scope.layer(node)) is not None)


class Scope:
    """A graph with what its names mean, the constants of the graphs around a body included.

    Attributes:
        graph: the main graph or a body.
        where: in words, as "then_branch of If branch"; empty for the main graph.
        origins: finds constants by the names that this graph reads.
        bodies: the scopes of the graph's bodies.
    """

    def __init__(self, graph: Graph, where: str = "", outer: "Scope | None" = None) -> None:
        self.graph = graph
        self.where = where
        self.origins: Origins = Origins(graph, None if outer is None else outer.origins)
        # Arrays tell constants of sibling bodies apart, which may have the same name.
        self._counts: Counter[int] = Counter() if outer is None else outer._counts
        self.bodies: tuple[tuple[Node, Scope], ...] = tuple(
            (body.node, Scope(body.graph, f"{body.attribute} of {body.node.op} {body.node.name}", self))
            for body in graph.bodies
        )
        self._counts.update(self._reads())

    def walk(self) -> "Iterator[Scope]":
        """This scope and those of all bodies in it, nested ones included."""
        yield self
        for _, body in self.bodies:
            yield from body.walk()

    def layer(self, node: Node) -> WeightedLayer | None:
        """The layer that `node` of this graph is, None if it is none with a constant weight; computed anew on each call.

        Raises:
            ArtifactError: an operator that the weight passes through has parameters that do not fit it.
        """
        if node.domain or node.op not in PRODUCTS or len(node.inputs) < 2:
            return None
        origin = self.origins.find(node.inputs[1])
        if origin is None:
            return None
        weight, layout, quantized = origin.compute()
        bias = self.origins.find(node.inputs[2]) if len(node.inputs) > 2 else None
        return WeightedLayer(
            node=node,
            weight_name=node.inputs[1],
            weight=weight,
            stored_name=origin.name,
            stored=origin.stored,
            stored_metadata=origin.metadata,
            route=origin.route,
            layout=layout,
            quantized=quantized,
            bias=None if bias is None else bias.compute()[0],
            group_axis=_group_axis(node, weight.ndim),
            groups=int(node.attributes.get("group", 1)) if node.op in ("Conv", "ConvTranspose") else 1,
            consumer_count=self._counts[id(origin.stored)],
        )

    def _reads(self) -> Iterator[int]:
        """For each read of a stored constant its identity; operators that are merely on its way do not count."""
        for node in self.graph.nodes:
            if node.outputs and self.origins.find(node.outputs[0]) is not None:
                continue
            for name in node.inputs:
                origin = self.origins.find(name)
                if origin is not None:
                    yield id(origin.stored)


def _group_axis(node: Node, rank: int) -> int:
    """Where the input channels lie; MatMul and Gemm multiply x (n, k) by B (k, m), transB stores B as (m, k)."""
    if node.op == "Conv" or (node.op == "Gemm" and node.attributes.get("transB", 0)):
        return 1
    return 0 if node.op == "ConvTranspose" else max(rank - 2, 0)
