"""Which FP32 tensors of a graph can be 16-bit floats: as many as the ONNX specification of its operators allows.

The decision is one for each type parameter of an operator (the T of "Conv: T x T -> T"): 16 bits where its constraint has
them. Where it has not, as for the scales of Resize, the tensor stays FP32. Of operators of other domains nothing is known:
they keep FP32.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import onnx.defs
import onnx_ir as ir

from masksparse_deploy.bake.precision.formats import FloatFormat
from masksparse_deploy.core.errors import UsageError

__all__ = ["Assignment", "assign_types", "graphs_of", "type_attribute"]

_STANDARD_DOMAIN = ""
_CONSTANT_OPERATORS = ("Constant", "ConstantOfShape")
# Attributes that name the type of the output.
_TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "output_datatype")
_VARIADIC = onnx.defs.OpSchema.FormalParameterOption.Variadic


@dataclass(frozen=True, eq=False, kw_only=True)
class Assignment:
    """What becomes 16-bit.

    Attributes:
        lowered: the FP32 values that are to be stored or computed in 16 bits.
        low_inputs: operator -> which of its FP32 inputs, by position, it can take in 16 bits.
        either_inputs: those of them that may as well be FP32, because no other input or output has their type.
        low_bodies: bodies of control flow whose FP32 outputs are to be 16-bit.
    """

    lowered: frozenset[ir.Value]
    low_inputs: Mapping[ir.Node, frozenset[int]]
    either_inputs: Mapping[ir.Node, frozenset[int]]
    low_bodies: frozenset[ir.Graph]

    def needs_cast(self, node: ir.Node, position: int, *, is_low: bool) -> bool:
        """Whether an operator cannot read an input that is 16-bit (`is_low`) or FP32 as it is."""
        return position not in self.either_inputs[node] and (position in self.low_inputs[node]) != is_low


def graphs_of(graph: ir.Graph, owner: ir.Node | None = None) -> Iterator[tuple[ir.Graph, ir.Node | None]]:
    """The graph and, after it, the bodies of its operators at any depth, each with the operator it belongs to."""
    yield graph, owner
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.GRAPH:
                yield from graphs_of(attribute.as_graph(), node)
            elif attribute.type == ir.AttributeType.GRAPHS:
                for body in attribute.as_graphs():
                    yield from graphs_of(body, node)


def assign_types(model: ir.Model, target: FloatFormat) -> Assignment:
    """Decide for every FP32 tensor of a model whose functions are inlined and whose types are known.

    Raises:
        UsageError: an operator that computes floats from floats takes this format in a later operator set only; there are
            FP64 tensors, or sequences or optionals of floats.
    """
    return _Assigner(model, target).assign()


def type_attribute(node: ir.Node, opset: int) -> str | None:
    """The attribute of a standard operator that says, or says by default, that its output is FP32; None if there is none."""
    return next((name for name, said in _said_types(node, _schema(node, opset)).items() if said == ir.DataType.FLOAT), None)


class _Assigner:
    def __init__(self, model: ir.Model, target: FloatFormat) -> None:
        self._model = model
        self._target = target
        self._opset = model.opset_imports.get(_STANDARD_DOMAIN) or model.opset_imports.get("ai.onnx") or 1
        self._graphs = list(graphs_of(model.graph))
        self._low_inputs: dict[ir.Node, frozenset[int]] = {}
        self._either_inputs: dict[ir.Node, frozenset[int]] = {}
        self._low_outputs: dict[ir.Node, frozenset[int]] = {}

    def assign(self) -> Assignment:
        self._refuse_other_floats()
        self._refuse_old_operators()
        for graph, _ in self._graphs:
            for node in graph:
                accepted = self._accepted(node, self._opset)
                self._low_inputs[node] = frozenset(i for i, v in enumerate(node.inputs) if _is_float(v) and accepted(i, "in"))
                self._either_inputs[node] = frozenset(i for i in self._low_inputs[node] if accepted.is_alone(i))
                self._low_outputs[node] = frozenset(
                    i for i, v in enumerate(node.outputs) if _is_float(v) and accepted(i, "out")
                )
        low_bodies = frozenset(
            graph for graph, owner in self._graphs if owner is not None and self._accepted(owner, self._opset)(0, "out")
        )
        self._keep_parameters_exact(low_bodies)
        lowered: set[ir.Value] = set()
        for graph, _ in self._graphs:
            lowered.update(v for v in graph.initializers.values() if _is_float(v) and self._is_read_low(v, low_bodies))
            if graph in low_bodies:
                lowered.update(value for value in graph.inputs if _is_float(value))
            for node in graph:
                outputs = [node.outputs[index] for index in self._low_outputs[node]]
                if node.op_type == "Constant":
                    outputs = [value for value in outputs if self._is_read_low(value, low_bodies)]
                elif node.op_type == "Cast":  # gives what is asked for: one before an output of the model stays as it is
                    outputs = [value for value in outputs if any(self._readers(value, low_bodies))]
                lowered.update(outputs)
        return Assignment(
            lowered=frozenset(lowered),
            low_inputs=self._low_inputs,
            either_inputs=self._either_inputs,
            low_bodies=low_bodies,
        )

    def _readers(self, value: ir.Value, low_bodies: frozenset[ir.Graph]) -> list[bool]:
        """For each that reads `value`, whether it can take it in 16 bits; an output of the model cannot."""
        readers = [use.idx in self._low_inputs[use.node] for use in value.uses()]
        return readers + [graph in low_bodies for graph, _ in self._graphs for output in graph.outputs if output is value]

    def _is_read_low(self, value: ir.Value, low_bodies: frozenset[ir.Graph]) -> bool:
        """Whether all that read a constant, at least one, take it in 16 bits."""
        readers = self._readers(value, low_bodies)
        return bool(readers) and all(readers)

    def _keep_parameters_exact(self, low_bodies: frozenset[ir.Graph]) -> None:
        """What is computed from constants alone for readers that take FP32, as scales of a Resize may be, stays FP32."""
        fixed: set[ir.Value] = set()
        for graph, _ in self._graphs:
            fixed.update(graph.initializers.values())
        computed = []
        for graph, _ in self._graphs:
            for node in graph:
                inputs = [value for value in node.inputs if value is not None]
                if all(value in fixed for value in inputs):
                    fixed.update(node.outputs)
                    computed.append(node)
        for node in reversed(computed):
            outputs = [value for value in node.outputs if _is_float(value) and value.uses()]
            read = [self._is_read_low(value, low_bodies) for value in outputs]
            if outputs and not any(read) and not any(value.is_graph_output() for value in outputs):
                self._low_inputs[node] = self._either_inputs[node] = self._low_outputs[node] = frozenset()

    def _accepted(self, node: ir.Node, opset: int) -> "_Accepted":
        return _Accepted(node, _schema(node, opset), opset, self._target)

    def _refuse_old_operators(self) -> None:
        """Operators that compute floats from floats are not left in FP32 where a newer operator set would take them."""
        needed: dict[str, int] = {}
        for graph, _ in self._graphs:
            for node in graph:
                computes = node.inputs and _is_float(node.inputs[0]) and _is_float(node.outputs[0])
                if not computes or node.op_type in needed or _takes_floats(self._accepted(node, self._opset)):
                    continue
                later = range(self._opset + 1, onnx.defs.onnx_opset_version() + 1)
                opset = next((version for version in later if _takes_floats(self._accepted(node, version))), None)
                if opset is not None:
                    needed[node.op_type] = opset
        if needed:
            raise UsageError(
                f"bake.precision: {', '.join(sorted(needed))} cannot compute in {self._target.title} in operator set "
                f"{self._opset}; use bake.opset {max(needed.values())}, or another precision (a file given as "
                "ONNX keeps its operator set: export it anew)"
            )

    def _refuse_other_floats(self) -> None:
        for graph, _ in self._graphs:
            for node in graph:
                if not all(self._accepted(node, self._opset).is_tensor(index) for index in range(len(node.outputs))):
                    raise UsageError(
                        f"bake.precision: {node.op_type} {node.name} computes a sequence or an optional, which cannot be "
                        f"converted to {self._target.title}; export the network without it"
                    )
            values = [*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)]
            for value in values:
                if value.type is None and any(_schema(use.node, self._opset) for use in value.uses()):
                    raise UsageError(
                        f"tensor {value.name} has no type in the file, and ONNX cannot infer it; declare the outputs of "
                        "operators of other domains in value_info"
                    )
                if value.dtype == ir.DataType.DOUBLE:
                    raise UsageError(
                        f"bake.precision: tensor {value.name} is FP64, which no sparse kernel computes in; export the network "
                        "in FP32 (model.float()) first"
                    )


class _Accepted:
    """Whether an operator takes or gives the 16-bit format at a position."""

    def __init__(self, node: ir.Node, schema: onnx.defs.OpSchema | None, opset: int, target: FloatFormat) -> None:
        self._node = node
        self._schema = schema
        self._opset = opset
        self._tensor_type = f"tensor({target.ir_type.name.lower()})"
        constraints = schema.type_constraints if schema is not None else ()
        self._allowed = {constraint.type_param_str: constraint.allowed_type_strs for constraint in constraints}

    def __call__(self, position: int, side: Literal["in", "out"]) -> bool:
        if self._schema is None:
            return False
        parameter = self._parameter(position, side)
        if self._tensor_type not in self._allowed.get(parameter, ()):
            return False
        return side == "in" or self._is_free(parameter)

    def is_alone(self, position: int) -> bool:
        """Whether no other float of the operator has the type of this input."""
        parameter = self._parameter(position, "in")
        others = [self._parameter(i, "in") for i, value in enumerate(self._node.inputs) if i != position and _is_float(value)]
        others += [self._parameter(i, "out") for i, value in enumerate(self._node.outputs) if _is_float(value)]
        return parameter not in others

    def is_tensor(self, position: int) -> bool:
        """Whether an output can be a tensor; of other domains nothing else is known."""
        if self._schema is None:
            return True
        parameter = self._parameter(position, "out")
        return any(name.startswith("tensor(") for name in self._allowed.get(parameter, (parameter,)))

    def _is_free(self, parameter: str) -> bool:
        """An output has the type of an input, or that of an attribute that can be changed."""
        node = self._node
        bound = [self._parameter(i, "in") for i, value in enumerate(node.inputs) if _is_float(value)]
        if parameter in bound or node.op_type in _CONSTANT_OPERATORS or type_attribute(node, self._opset) is not None:
            return True
        if any(attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS) for attribute in node.attributes.values()):
            return True
        # an attribute left at "as the input" follows the first float among the inputs
        follows = ir.DataType.UNDEFINED in _said_types(node, self._schema).values()
        return follows and bool(bound) and self._tensor_type in self._allowed.get(bound[0], ())

    def _parameter(self, position: int, side: Literal["in", "out"]) -> str:
        assert self._schema is not None
        formal = self._schema.inputs if side == "in" else self._schema.outputs
        last = formal[-1]
        assert position < len(formal) or last.option == _VARIADIC, "the ONNX checker has counted"
        return formal[min(position, len(formal) - 1)].type_str


def _takes_floats(accepted: _Accepted) -> bool:
    return accepted(0, "in") and accepted(0, "out")


def _is_float(value: ir.Value | None) -> bool:
    return value is not None and value.dtype == ir.DataType.FLOAT


def _said_types(node: ir.Node, schema: onnx.defs.OpSchema | None) -> dict[str, int]:
    """The attributes that name the output's type, with what they say; 0 where neither the file nor a default says anything."""
    defaults = schema.attributes if schema is not None else {}
    return {
        name: node.attributes[name].as_int() if name in node.attributes else defaults[name].default_value.i
        for name in _TYPE_ATTRIBUTES
        if name in defaults
    }


def _schema(node: ir.Node, opset: int) -> onnx.defs.OpSchema | None:
    """None for an operator of another domain."""
    if node.domain not in (_STANDARD_DOMAIN, "ai.onnx") or not onnx.defs.has(node.op_type, opset):
        return None
    return onnx.defs.get_schema(node.op_type, opset, "")
