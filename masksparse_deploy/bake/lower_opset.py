"""From operator set 18, the oldest that PyTorch's exporter writes, to 17, the newest that TensorRT 8.6 reads."""

import onnx
import onnx.checker
import onnx.defs
import onnx.numpy_helper

from masksparse_deploy.core.errors import UsageError

__all__ = ["EXPORTED_OPSET", "LOWERED_OPSET", "lower_opset"]

EXPORTED_OPSET = 18
LOWERED_OPSET = 17
# The format version that came with opset 17; a newer one makes older parsers refuse the file.
_IR_VERSION = 8


def lower_opset(model: onnx.ModelProto) -> None:
    """Rewrite `model`, of opset 18, in place so that it means the same in opset 17.

    Most operators are the same in both. Reductions take their axes as an attribute instead of an input; Pad loses its axes.

    Raises:
        UsageError: an operator has no counterpart in opset 17, or its axes are computed; names the node.
    """
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = onnx.numpy_helper.to_array(node.attribute[0].t)
    for node in model.graph.node:
        if node.domain or onnx.defs.get_schema(node.op_type, EXPORTED_OPSET, "").since_version <= LOWERED_OPSET:
            continue
        axes = list(node.input[1:2]) if node.op_type.startswith("Reduce") else list(node.input[3:4])
        if node.op_type.startswith("Reduce") and all(name in constants for name in axes):
            _axes_to_attribute(node, [int(axis) for name in axes for axis in constants[name]])
        elif node.op_type != "Pad" or axes:
            raise UsageError(
                f"bake.opset: {node.op_type} {node.name} cannot be written in opset {LOWERED_OPSET}; use opset "
                f"{EXPORTED_OPSET} or newer (TensorRT 8.6 cannot read those)"
            )
    _drop_unread(model.graph)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = LOWERED_OPSET
    model.ir_version = _IR_VERSION
    onnx.checker.check_model(model, full_check=True)


def _axes_to_attribute(node: onnx.NodeProto, axes: list[int]) -> None:
    attributes = {attribute.name: attribute for attribute in node.attribute}
    noop = attributes.pop("noop_with_empty_axes", None)
    if noop is not None and noop.i and not axes:
        node.op_type = "Identity"
        attributes = {}
    elif axes:
        attributes["axes"] = onnx.helper.make_attribute("axes", axes)
    kept = [onnx.AttributeProto.FromString(attribute.SerializeToString()) for attribute in attributes.values()]
    del node.input[1:]
    del node.attribute[:]
    node.attribute.extend(kept)


def _drop_unread(graph: onnx.GraphProto) -> None:
    """Remove the axes that nothing reads any more."""
    read = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
    for unread in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(unread)
    for node in [node for node in graph.node if node.op_type == "Constant" and node.output[0] not in read]:
        graph.node.remove(node)
