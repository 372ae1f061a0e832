"""Is a layer N:M along its output channels too, as the matrix of the backward pass needs it?"""

from masksparse_deploy.bake.census import take_census
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["crosswise_fault"]


def crosswise_fault(layer: WeightedLayer, pattern: NMPattern) -> str:
    """Why the weight does not keep N of M along its output channels, in words; empty if it does.

    Args:
        layer: of at least one axis.
        pattern: N:M; whether it says that it is transposable does not matter.
    """
    axis = min(layer.output_axis, layer.weight.ndim - 1)
    channels = layer.weight.shape[axis]
    if axis == layer.group_axis or channels == 0 or channels % pattern.m:
        return f"{channels} output channel{'' if channels == 1 else 's'}: not a multiple of {pattern.m}"
    census = take_census(layer.weight, axes=(axis,), pattern=pattern)
    if not census.violation_count:
        return ""
    return (
        f"{census.violation_count:,} of {census.group_count:,} groups of output channels keep more than {pattern.n} of "
        f"{pattern.m} weights"
    )
