"""Intermediate tensors as outputs of an optimised ONNX Runtime plan, so that the kernels stay those of the deployed one.

Marked in the source, a tensor keeps the optimiser from fusing across it: a convolution between a DequantizeLinear and a
QuantizeLinear, say, would not become an integer one. Marked in the plan, what is fused stays fused.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx.shape_inference
from onnx import helper, numpy_helper

from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["Tap", "expose_in_plan", "find_taps"]

# For each integer operator the places of its output's scale and zero point.
_INTEGER = {"QLinearConv": (6, 7), "QLinearMatMul": (6, 7), "QGemm": (7, 8)}
# What runtimes take into an integer operator by its limits.
_FOLDED = ("Relu", "Clip")
# Signed and unsigned levels of the same number are that far apart.
_SIGN = 128


@dataclass(frozen=True, eq=False, kw_only=True)
class Tap:
    """Where a plan has a tensor of its source.

    Attributes:
        name: the tensor in the source.
        tensor: the tensor in the plan: itself, or the integers that it is dequantized from.
        scale: of those integers in the source, so that a plan with another one does not go unseen; None for `name` itself.
        zero_point: likewise, in the type of the plan's integers.
    """

    name: str
    tensor: str
    scale: npt.NDArray[Any] | None = None
    zero_point: npt.NDArray[Any] | None = None


def find_taps(plan: Graph, source: Graph, names: Sequence[str]) -> dict[str, Tap]:
    """Where the plan has tensors of its source, by name; those that it no longer computes are left out."""
    computed = {output for node in plan.nodes for output in node.outputs}
    found = {}
    for name in names:
        tap = _integers(plan, source, name, computed)
        if tap is None and name in computed:
            tap = Tap(name=name, tensor=name)
        if tap is not None:
            found[name] = tap
    return found


def expose_in_plan(plan: bytes, source: bytes, names: Sequence[str]) -> tuple[bytes, tuple[str, ...]]:
    """Append tensors of the source to the outputs of a plan, in the order of `names`.

    Args:
        plan: the optimised model; outputs of it among `names` are moved behind its others.
        source: the model it was made of.
        names: tensors of the source with types that can be inferred.

    Returns:
        the plan with these outputs, and the names of tensors that it does not compute, which are left out.
    """
    model = onnx.load_model_from_string(plan)
    graph = parse_graph(plan, name="plan")
    taps = find_taps(graph, parse_graph(source, name="source"), names)
    inferred = onnx.shape_inference.infer_shapes(onnx.load_model_from_string(source))
    known = {value.name: value for value in inferred.graph.value_info}
    kept = [output for output in model.graph.output if output.name not in names]
    del model.graph.output[:]
    model.graph.output.extend([*kept, *(known[name] for name in names if name in taps)])
    computed = {output for node in graph.nodes for output in node.outputs}
    for tap in taps.values():
        if tap.scale is not None:
            _dequantize(model, tap, computed)
    return bytes(model.SerializeToString(deterministic=True)), tuple(name for name in names if name not in taps)


def _dequantize(model: onnx.ModelProto, tap: Tap, computed: set[str]) -> None:
    """Append the operator that gives `tap.name`, and rename the plan's own tensor of that name, if it has one."""
    if tap.name in computed:
        own = f"{tap.name}/plan"
        for node in model.graph.node:
            for field in (node.input, node.output):
                field[:] = [own if name == tap.name else name for name in field]
    assert tap.scale is not None and tap.zero_point is not None
    parameters = {f"{tap.name}/exposed_scale": tap.scale, f"{tap.name}/exposed_zero_point": tap.zero_point}
    model.graph.initializer.extend(numpy_helper.from_array(np.asarray(array), name) for name, array in parameters.items())
    inputs = [tap.tensor, *parameters]
    model.graph.node.append(helper.make_node("DequantizeLinear", inputs, [tap.name], name=f"{tap.name}/exposed"))


def _integers(plan: Graph, source: Graph, name: str, computed: set[str]) -> Tap | None:
    """The integers that a DequantizeLinear of the source reads, which come out of a QuantizeLinear."""
    dequantizer = _maker(source, name, "DequantizeLinear")
    quantizer = None if dequantizer is None else _maker(source, dequantizer.inputs[0], "QuantizeLinear")
    if dequantizer is None or quantizer is None:
        return None
    scale, *points = (source.constants.get(parameter) for parameter in dequantizer.inputs[1:])
    point = points[0] if points else None
    if scale is None or point is None or scale.size != 1 or point.dtype not in (np.int8, np.uint8):
        return None
    for tensor, plan_point in _candidates(plan, source, name, dequantizer, quantizer):
        kind = plan.constants[plan_point].dtype if plan_point in plan.constants else None
        if tensor in computed and kind in (np.int8, np.uint8):
            shift = 0 if kind == point.dtype else _SIGN if kind == np.uint8 else -_SIGN
            shifted = (point.astype(np.int32) + shift).astype(kind).reshape(())
            return Tap(name=name, tensor=tensor, scale=scale.reshape(()), zero_point=shifted)
    return None


def _candidates(plan: Graph, source: Graph, name: str, dequantizer: Node, quantizer: Node) -> Iterator[tuple[str, str]]:
    """Tensors of the plan that may hold the integers, each with the name of its zero point: the writer's before the readers'.

    The optimiser renames tensors where it changes their sign, but keeps the names of operators.
    """
    by_name = {node.name: node for node in plan.nodes}
    own = by_name.get(quantizer.name)
    if own is not None and own.op == "QuantizeLinear":
        yield own.outputs[0], own.inputs[2]
    writer = _behind_folded(source, quantizer.inputs[0])
    fused = by_name.get(writer.name) if writer is not None else None
    if fused is not None and fused.op in _INTEGER:
        yield fused.outputs[0], fused.inputs[_INTEGER[fused.op][1]]
    for reader in source.nodes:
        fused = by_name.get(reader.name)
        if fused is not None and fused.op in _INTEGER and reader.inputs[:1] == (name,):
            yield fused.inputs[0], fused.inputs[2]


def _behind_folded(source: Graph, tensor: str) -> Node | None:
    """The operator that gives a tensor, seen through what is folded into it."""
    node = next((node for node in source.nodes if tensor in node.outputs), None)
    while node is not None and node.op in _FOLDED:
        inner = node.inputs[0]
        node = next((node for node in source.nodes if inner in node.outputs), None)
    return node


def _maker(graph: Graph, tensor: str, op: str) -> Node | None:
    return next((node for node in graph.nodes if tensor in node.outputs and node.op == op), None)
