"""Which convolutions of a rewritten file compute only some of their output channels, for the report."""

from masksparse_deploy.core.artifacts.rewriting import FewerOutputs
from masksparse_deploy.graph.annotations import HELD_CHANNELS, HELD_TENSOR
from masksparse_deploy.graph.model import Graph

__all__ = ["fewer_outputs"]

_CHANNEL_AXIS = 1


def fewer_outputs(sparse: Graph, rewritten: Graph) -> tuple[FewerOutputs, ...]:
    """By the annotations of a rewritten file in which `verify.differences` finds none, in graph order."""
    found = []
    for node in rewritten.nodes:
        channels = node.metadata.get(HELD_CHANNELS)
        if channels is not None:
            count = sparse.shapes[node.metadata[HELD_TENSOR]][_CHANNEL_AXIS]
            assert count is not None, "a convolution has as many output channels as its weight"
            found.append(FewerOutputs(node=node.name, output_channels=count, computed_channels=len(channels.split())))
    return tuple(found)
