"""How far a runtime may move the biases of an INT8 layer: it stores them as INT32 on the grid of the products."""

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Graph, WeightedLayer

__all__ = ["bias_step"]


def bias_step(layer: WeightedLayer, graph: Graph) -> npt.NDArray[np.float64] | None:
    """The step of the INT32 grid for each output channel: scale of the input times scale of the weight.

    Args:
        layer: of `graph`.
        graph: a file with Q/DQ.

    Returns:
        float64, () or (out_channels,); None where input and weight are not both dequantized with constant scales.
    """
    scales = []
    for name in layer.node.inputs[:2]:
        maker = next((node for node in graph.nodes if name in node.outputs and node.op == "DequantizeLinear"), None)
        scale = None if maker is None else graph.constants.get(maker.inputs[1])
        if scale is None or scale.ndim > 1:
            return None
        scales.append(scale.astype(np.float64))
    return np.asarray(scales[0] * scales[1], dtype=np.float64)
