"""The layers with weights in an ONNX Runtime plan, those included that optimisation fused or took out of Q/DQ form."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["layer_in_plan", "plan_layers"]

_RUNTIME = "com.microsoft"
# (domain, operator) -> the standard operator that multiplies in the same way.
_FUSED = {(_RUNTIME, "FusedConv"): "Conv", (_RUNTIME, "FusedGemm"): "Gemm"}
_QUANTIZED = {("", "QLinearConv"): "Conv", ("", "QLinearMatMul"): "MatMul", (_RUNTIME, "QGemm"): "Gemm"}
# Inputs that all three quantized operators have in common: x, its scale and zero point, the weight's; then those of the
# output, behind which QLinearConv has its bias, while QGemm has it in front of them.
_WEIGHT, _SCALE = 3, 4
_BIAS = {"QLinearConv": 8, "QGemm": 6}


def plan_layers(plan: Graph) -> tuple[WeightedLayer, ...]:
    """As `weighted_layers`, with fused operators as the ones they were made of and integer ones with dequantised weights."""
    constants = dict(plan.constants)
    nodes = tuple(standard for node in plan.nodes for standard in _standard(node, constants))
    return weighted_layers(replace(plan, nodes=nodes, constants=constants))


def layer_in_plan(layer: WeightedLayer, layers: tuple[WeightedLayer, ...]) -> WeightedLayer | None:
    """The plan's layer for one of the file: of the same name, or, where fusing invented a name, with the same constant."""
    by_name = next((found for found in layers if found.node.name == layer.node.name), None)
    return by_name or next((found for found in layers if found.stored_name == layer.stored_name), None)


def _standard(node: Node, constants: dict[str, npt.NDArray[Any]]) -> Iterator[Node]:
    kind = (node.domain, node.op)
    if kind in _FUSED:
        yield replace(node, op=_FUSED[kind], domain="", inputs=node.inputs[:3])
    elif kind in _QUANTIZED and node.inputs[_WEIGHT] in constants:
        transposed = node.op == "QLinearConv" or bool(node.attributes.get("transB", 0))
        weight_axis = 0 if transposed else constants[node.inputs[_WEIGHT]].ndim - 1
        weight = f"{node.name}/weight"
        yield _dequantize(weight, node.inputs[_WEIGHT : _WEIGHT + 3], weight_axis)
        inputs = [node.inputs[0], weight]
        place = _BIAS.get(node.op, len(node.inputs))
        if len(node.inputs) > place and node.inputs[place] in constants:
            # the runtime leaves the bias's scale out: it is that of the input times that of the weight
            scales = [constants[name].astype(np.float32) for name in (node.inputs[1], node.inputs[_SCALE])]
            scale, bias = f"{node.name}/bias_scale", f"{node.name}/bias"
            constants[scale] = scales[0] * scales[1]
            yield _dequantize(bias, (node.inputs[place], scale), 0)
            inputs.append(bias)
        yield replace(node, op=_QUANTIZED[kind], domain="", inputs=tuple(inputs))
    else:
        yield node


def _dequantize(output: str, inputs: tuple[str, ...], axis: int) -> Node:
    return Node(
        name=output,
        op="DequantizeLinear",
        domain="",
        inputs=inputs,
        outputs=(output,),
        attributes={"axis": axis},
        metadata={},
    )
