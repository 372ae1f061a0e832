"""Which initializer feeds which operator, and along which of its axes the input channels lie."""

from dataclasses import dataclass

import onnx_ir as ir

from masksparse_deploy.core.errors import ArtifactError

__all__ = ["GraphMismatchError", "TracedWeight", "trace_weights"]

# Operator -> the index of its weight among its inputs.
_WEIGHT_INPUT = {"Conv": 1, "Gemm": 1, "MatMul": 1}


class GraphMismatchError(ArtifactError, ir.passes.PreconditionError):
    """The graph is not one that these masks can be written into; a pass refuses it before it changes anything."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedWeight:
    """An initializer and one operator that multiplies by it.

    Attributes:
        initializer: the constant.
        node: the operator.
        group_axis: the axis of the initializer that holds the input channels of the operator.
    """

    initializer: ir.Value
    node: ir.Node
    group_axis: int


def trace_weights(model: ir.Model) -> tuple[TracedWeight, ...]:
    """Every (initializer, operator) pair of the main graph, in graph order."""
    traced = []
    for node in model.graph:
        index = _WEIGHT_INPUT.get(node.op_type) if node.domain == "" else None
        value = node.inputs[index] if index is not None else None
        if value is None or not value.is_initializer():
            continue
        traced.append(TracedWeight(initializer=value, node=node, group_axis=_input_channel_axis(node, value)))
    return tuple(traced)


def _input_channel_axis(node: ir.Node, weight: ir.Value) -> int:
    # Conv and transposed Gemm store (out, in, ...); MatMul and plain Gemm multiply by (..., in, out).
    transposed = node.op_type == "Gemm" and node.attributes.get_int("transB", 0) != 0
    if node.op_type == "Conv" or transposed:
        return 1
    assert weight.shape is not None
    return max(len(weight.shape) - 2, 0)
