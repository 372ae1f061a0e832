"""A graph in which every stored constant stands where it is read, for those that look at weights by the name of an input."""

from dataclasses import replace

from masksparse_deploy.graph.constants import Origins
from masksparse_deploy.graph.model import Graph

__all__ = ["fold_constants"]


def fold_constants(graph: Graph) -> Graph:
    """The same graph without the operators that only cast, turn round or dequantize a stored constant.

    What such an operator gives becomes a constant under the operator's output name: the array that is multiplied by, as
    `WeightedLayer.weight`. Constants that nothing else reads are left out. Bodies of If, Loop and Scan stay as they are.

    Raises:
        ArtifactError: an operator that a constant passes through has parameters that do not fit it.
    """
    origins = Origins(graph)
    constants = dict(graph.constants)
    nodes = []
    for node in graph.nodes:
        origin = origins.find(node.outputs[0]) if node.outputs and node.outputs[0] else None
        if origin is None:
            nodes.append(node)
        else:
            constants[node.outputs[0]] = origin.compute()[0]
    if len(nodes) == len(graph.nodes) or graph.bodies:
        return graph
    read = {name for node in nodes for name in node.inputs} | set(graph.outputs)
    kept = {name: array for name, array in constants.items() if name in read}
    return replace(graph, nodes=tuple(nodes), constants=kept)
