"""Which stored constant feeds which operator, and along which of its axes the input channels lie.

The way from a constant to the operator that multiplies by it may lead through operators that only rearrange or rescale it,
into the bodies of If, Loop and Scan, and into the functions of the model.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from masksparse_deploy.bake.rearrange import Rearrangement, rearranged_by
from masksparse_deploy.bake.stored import all_nodes, stored_tensor, stored_values
from masksparse_deploy.core.errors import ArtifactError

__all__ = ["GraphMismatchError", "Trace", "TracedWeight", "trace", "trace_weights"]

# Operator -> the index of its weight among its inputs.
_WEIGHT_INPUT = {"Conv": 1, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}
# Exporters make routes of a few operators; no file shall keep the tracer busy with a longer one.
_LONGEST_ROUTE = 16


class GraphMismatchError(ArtifactError, ir.passes.PreconditionError):
    """The graph is not one that these masks can be written into; a pass refuses it before it changes anything."""


@dataclass(frozen=True, eq=False, kw_only=True)
class TracedWeight:
    """A stored constant and one operator that multiplies by it.

    Attributes:
        initializer: the constant: an initializer, or the output of a Constant node.
        node: the operator.
        route: what happens to the constant on its way, from the constant to the operator.
        operand_axis: the axis of the operator's input that holds its input channels.
    """

    initializer: ir.Value
    node: ir.Node
    route: tuple[Rearrangement, ...]
    operand_axis: int

    @property
    def group_axis(self) -> int | None:
        """The axis of the constant itself that holds the input channels; None where a Reshape took that axis apart."""
        axis: int | None = self.operand_axis
        for step in reversed(self.route):
            axis = None if axis is None else step.axis_before(axis)
        return axis

    @property
    def operand_shape(self) -> tuple[int, ...]:
        """The shape that the operator multiplies by."""
        return self.route[-1].shape_after if self.route else tuple(stored_tensor(self.initializer).shape.numpy())

    @property
    def obstacle(self) -> str:
        """Why a stored zero would not be a zero of the operand; empty if it is one."""
        return next((step.obstacle for step in self.route if step.obstacle), "")


@dataclass(frozen=True, eq=False, kw_only=True)
class Trace:
    """All that a model multiplies by.

    Attributes:
        weights: every pair of a constant and an operator: main graph first, then bodies and functions, in node order.
        other_readers: for each constant in `weights` what else depends on its values, in words.
    """

    weights: tuple[TracedWeight, ...]
    other_readers: Mapping[ir.Value, tuple[str, ...]]

    def named(self, name: str) -> dict[ir.Value, list[TracedWeight]]:
        """The constants of that name, in whichever graph, each with the operators that multiply by it."""
        found: dict[ir.Value, list[TracedWeight]] = {}
        for weight in self.weights:
            if weight.initializer.name == name:
                found.setdefault(weight.initializer, []).append(weight)
        return found


def trace_weights(model: ir.Model) -> tuple[TracedWeight, ...]:
    """Every pair of a stored constant and an operator that multiplies by it."""
    return trace(model).weights


def trace(model: ir.Model) -> Trace:
    """Follow every stored constant of the model, its bodies and its functions to what reads it."""
    weights: list[TracedWeight] = []
    others: dict[ir.Value, tuple[str, ...]] = {}
    for constant in stored_values(model):
        found = list(_followed(constant, constant, (), model))
        multiplied = [item for item in found if isinstance(item, TracedWeight)]
        if multiplied:
            weights += multiplied
            others[constant] = tuple(sorted({item for item in found if isinstance(item, str)}))
    order = {node: index for index, node in enumerate(all_nodes(model))}
    return Trace(weights=tuple(sorted(weights, key=lambda weight: order[weight.node])), other_readers=others)


def _followed(
    constant: ir.Value, value: ir.Value, route: tuple[Rearrangement, ...], model: ir.Model
) -> Iterator[TracedWeight | str]:
    """Operators that multiply by `value`, which is `constant` after `route`; and in words whatever else reads it."""
    if value.is_graph_output():
        yield f"output {value.name} of a graph"
    for node, index in value.uses():
        function = model.functions.get(node.op_identifier())
        if function is not None:
            yield from _followed(constant, function.inputs[index], route, model)
            continue
        shape = route[-1].shape_after if route else tuple(stored_tensor(constant).shape.numpy())
        axis = _input_channel_axis(node, len(shape)) if _is_weight(node, index) else None
        step = rearranged_by(node, shape) if index == 0 and len(route) < _LONGEST_ROUTE else None
        if axis is not None:
            yield TracedWeight(initializer=constant, node=node, route=route, operand_axis=axis)
        elif step is not None:
            yield from _followed(constant, node.outputs[0], (*route, step), model)
        else:
            yield f"{node.name} ({node.op_type})"


def _is_weight(node: ir.Node, index: int) -> bool:
    return node.domain in ("", "ai.onnx") and _WEIGHT_INPUT.get(node.op_type) == index


def _input_channel_axis(node: ir.Node, rank: int) -> int | None:
    """The axis of the operator's weight that is summed over input channels; None where the graph does not tell."""
    if node.op_type == "Conv":  # (out, in / groups, ...)
        return 1
    if node.op_type == "ConvTranspose":  # (in, out / groups, ...)
        return 0
    if node.op_type == "Gemm":  # x (n, k) times B (k, m), which transB stores as (m, k)
        transposed = node.attributes.get("transB")
        if transposed is None:
            return 0
        return None if transposed.is_ref() else int(transposed.as_int() != 0)
    return max(rank - 2, 0)
