"""How much arithmetic an operator does."""

import math

from masksparse_deploy.graph.model import Graph, Node

__all__ = ["mac_count"]

_CONVOLUTIONS = ("Conv", "ConvInteger", "ConvTranspose", "QLinearConv")
_MATRIX_PRODUCTS = ("Gemm", "MatMul", "MatMulInteger", "QLinearMatMul")


def mac_count(graph: Graph, node: Node, weight_shape: tuple[int, ...]) -> int | None:
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
