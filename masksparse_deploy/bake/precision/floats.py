"""FP16 and BF16 files: every tensor that may be 16-bit becomes so, the model's inputs and outputs stay FP32."""

from collections.abc import Iterator

import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, ShapeInferencePass

from masksparse_deploy.bake.precision.assignment import Assignment, assign_types, graphs_of, type_attribute
from masksparse_deploy.bake.precision.formats import FloatFormat, FloatPrecision, float_format

__all__ = ["ConvertFloats", "with_known_types"]


class ConvertFloats(ir.passes.InPlacePass):
    """Store and compute in FP16 or BF16 whatever is FP32.

    Initializers, Constant nodes, types that attributes name, declared types of intermediate tensors and the bodies of control
    flow are converted; functions of the model are inlined. Values are rounded to nearest, ties to even: zeros stay zeros, a
    value beyond the format's largest finite number becomes infinite and one below half its smallest becomes zero
    (bake.precision.ranges counts them). What the ONNX specification allows in FP32 only stays FP32; a Cast stands wherever
    the two meet. The model's inputs and outputs stay FP32 too, with a Cast behind each input and before each output, so that
    those who run the model need not change anything. Other names, annotations, documentation and operator sets stay.

    Raises a UsageError, before anything is converted, where an operator computes in this format in a later operator set only
    or where there are FP64 tensors.
    """

    def __init__(self, precision: FloatPrecision) -> None:
        super().__init__()
        self._target = float_format(precision)
        self._precision = precision

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Convert the tensors and insert the casts."""
        with_known_types(model)
        assignment = assign_types(model, self._target)
        if not assignment.lowered:
            return ir.passes.PassResult(model, False)
        floats = _float_values(model)
        opset = model.opset_imports.get("") or model.opset_imports["ai.onnx"]
        for value in floats:
            if value in assignment.lowered:
                _lower(value, self._target, opset)
        _Casts(model, assignment, self._target, suffix=self._precision).insert(floats)
        return ir.passes.PassResult(model, True)


def with_known_types(model: ir.Model) -> None:
    """Inline the model's functions and infer the types of its tensors, in place."""
    if model.functions:
        InlinePass()(model)
    stored = list(model.graph.initializers.values())
    ShapeInferencePass(check_type=False, strict_mode=False)(model)
    model.graph.initializers.clear()  # inference takes large ones out and puts them back at the end
    for value in stored:
        model.graph.initializers.add(value)


def _float_values(model: ir.Model) -> list[ir.Value]:
    """All FP32 values, each once, every one after those it is computed from."""
    values: dict[ir.Value, None] = {}
    for graph, _ in graphs_of(model.graph):
        values.update(dict.fromkeys([*graph.inputs, *graph.initializers.values()]))
        values.update(dict.fromkeys(output for node in graph for output in node.outputs))
    return [value for value in values if value.dtype == ir.DataType.FLOAT]


def _lower(value: ir.Value, target: FloatFormat, opset: int) -> None:
    value.dtype = target.ir_type
    if value.is_initializer():
        assert value.const_value is not None
        value.const_value = _lowered(value.const_value, target)
    node = value.producer()
    if node is None:
        return
    if node.op_type in ("Constant", "ConstantOfShape") and node.domain in ("", "ai.onnx"):
        _lower_constant(node, target)
    elif (name := type_attribute(node, opset)) is not None:
        node.attributes[name] = ir.AttrInt64(name, int(target.ir_type))


def _lower_constant(node: ir.Node, target: FloatFormat) -> None:
    """What a Constant holds or a ConstantOfShape fills with (0.0 if it does not say), as a 16-bit tensor."""
    tensor: ir.TensorProtocol = ir.tensor([0.0], dtype=ir.DataType.FLOAT)
    for name, attribute in list(node.attributes.items()):
        if attribute.type == ir.AttributeType.TENSOR:
            tensor = attribute.as_tensor()
        elif attribute.type == ir.AttributeType.FLOAT:
            tensor = ir.tensor(attribute.as_float(), dtype=ir.DataType.FLOAT)
        elif attribute.type == ir.AttributeType.FLOATS:
            tensor = ir.tensor(attribute.as_floats(), dtype=ir.DataType.FLOAT)
        del node.attributes[name]
    node.attributes["value"] = ir.AttrTensor("value", _lowered(tensor, target))


def _lowered(tensor: ir.TensorProtocol, target: FloatFormat) -> ir.TensorProtocol:
    return ir.Tensor(
        target.cast(tensor.numpy()), name=tensor.name, doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props)
    )


class _Casts:
    """Inserts one Cast for each value that is read in another type than it has, right behind where the value comes from."""

    def __init__(self, model: ir.Model, assignment: Assignment, target: FloatFormat, *, suffix: str) -> None:
        self._graph = model.graph
        self._assignment = assignment
        self._target = target
        self._suffix = suffix
        self._all_graphs = [graph for graph, _ in graphs_of(model.graph)]
        self._taken = set(self._names())

    def insert(self, floats: list[ir.Value]) -> None:
        """Reconcile `floats`, the values that were FP32, with those that read them."""
        heads = {graph: graph[0] if len(graph) else None for graph in self._all_graphs}
        for value in floats:
            is_low = value in self._assignment.lowered
            uses = [use for use in value.uses() if self._assignment.needs_cast(use.node, use.idx, is_low=is_low)]
            outputs = [
                (graph, index)
                for graph in self._all_graphs
                for index, output in enumerate(graph.outputs)
                if output is value and (graph in self._assignment.low_bodies) != is_low
            ]
            if not uses and not outputs:
                continue
            cast = self._cast(value, is_low=is_low)
            for use in uses:
                use.node.replace_input_with(use.idx, cast.outputs[0])
            for graph, index in outputs:
                graph.outputs[index] = cast.outputs[0]
            if any(graph is self._graph for graph, _ in outputs):
                _swap_names(value, cast.outputs[0])
            producer, home = value.producer(), value.graph
            assert home is not None, "functions are inlined"
            if producer is not None:
                home.insert_after(producer, cast)
            elif (head := heads[home]) is not None:
                home.insert_before(head, cast)
            else:
                home.append(cast)

    def _cast(self, value: ir.Value, *, is_low: bool) -> ir.Node:
        to = ir.DataType.FLOAT if is_low else self._target.ir_type
        name = self._free_name(f"{value.name}_{'fp32' if is_low else self._suffix}")
        output = ir.Value(name=name, type=ir.TensorType(to), shape=value.shape)
        return ir.node("Cast", [value], {"to": int(to)}, outputs=[output], name=self._free_name(f"cast_{name}"))

    def _names(self) -> Iterator[str]:
        for graph in self._all_graphs:
            for node in graph:
                yield node.name or ""
                yield from (output.name or "" for output in node.outputs)
            yield from (value.name or "" for value in graph.inputs)
            yield from graph.initializers

    def _free_name(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _swap_names(value: ir.Value, output: ir.Value) -> None:
    """A model's output keeps its name; what was called so before gets the new one."""
    value.name, output.name = output.name, value.name
