"""The layers of ONNX Runtime's optimised graph, and the nodes of the source that each stands for."""

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.engine.source import Source
from masksparse_deploy.graph.model import Graph, Node

__all__ = ["plan_layers"]

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def plan_layers(plan: Graph, source: Source) -> tuple[EngineLayer, ...]:
    """The operators of the plan that read a weight (a constant with two axes or more), also behind quantizers."""
    layers = []
    weights = {name for name, array in plan.constants.items() if array.ndim >= 2}
    for node in plan.nodes:
        if weights.isdisjoint(node.inputs):
            continue
        if node.op in _QUANTIZERS:
            weights.update(node.outputs)
            continue
        layers.append(
            EngineLayer(
                name=node.name or node.outputs[0],
                onnx_nodes=_merged_nodes(node, source.graph) or _namesake(node, source.graph),
                tactic=f"{node.domain}.{node.op}" if node.domain else node.op,
                is_sparse=False,
                reason="ONNX Runtime has no 2:4 kernels",
            )
        )
    return tuple(layers)


def _merged_nodes(node: Node, source: Graph) -> tuple[str, ...]:
    """The nodes of the source between the inputs and the outputs of a node of the plan, inputs first.

    Empty where the optimiser renamed tensors, so that the two cannot be matched.
    """
    producers = {name: candidate for candidate in source.nodes for name in candidate.outputs}
    ends = {"", *node.inputs, *source.constants}
    found: dict[str, None] = {}

    def reaches_inputs(tensor: str) -> bool:
        if tensor in ends:
            return True
        if tensor not in producers:  # an input of the model that the plan's node does not read
            return False
        producer = producers[tensor]
        if producer.name not in found:
            if not all(reaches_inputs(name) for name in producer.inputs):
                return False
            found[producer.name] = None
        return True

    return tuple(found) if all(reaches_inputs(name) for name in node.outputs) else ()


def _namesake(node: Node, source: Graph) -> tuple[str, ...]:
    """The node of the source whose name the optimiser kept while it renamed tensors around it."""
    return tuple(candidate.name for candidate in source.nodes if candidate.name == node.name)
