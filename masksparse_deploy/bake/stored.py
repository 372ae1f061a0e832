"""Constants as a model stores them: initializers, and the tensors of Constant nodes."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["all_nodes", "fixed_array", "replace_stored", "stored_tensor", "stored_values"]


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """The nodes of the main graph, then those of its bodies, then those of functions."""
    main = list(model.graph)
    yield from main
    listed = set(main)
    yield from (node for node in model.graph.all_nodes() if node not in listed)
    for function in model.functions.values():
        yield from function.all_nodes()


def stored_values(model: ir.Model) -> Iterator[ir.Value]:
    """All constants that are stored as tensors: initializers of all graphs, and outputs of Constant nodes."""
    for graph in model.graphs():
        yield from (value for value in graph.initializers.values() if value.const_value is not None)
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx") and "value" in node.attributes:
            attribute = node.attributes["value"]
            if not attribute.is_ref():  # the value of a function's attribute is stored where the function is called
                yield node.outputs[0]


def stored_tensor(value: ir.Value) -> ir.TensorProtocol:
    """The tensor of an initializer, or of the Constant node that gives `value`."""
    if value.is_initializer():
        assert value.const_value is not None
        return value.const_value
    node = value.producer()
    assert node is not None
    return node.attributes["value"].as_tensor()


def replace_stored(value: ir.Value, tensor: ir.TensorProtocol) -> None:
    """Put another tensor in the place of the one that `stored_tensor` gives."""
    if value.is_initializer():
        value.const_value = tensor
        return
    node = value.producer()
    assert node is not None
    node.attributes["value"] = ir.AttrTensor("value", tensor, doc_string=node.attributes["value"].doc_string)


def fixed_array(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The content of a stored constant, as axes, shapes and zero points are; None if it is computed or comes from outside."""
    if value is None:
        return None
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    attribute = next(iter(node.attributes.values()), None)
    if attribute is None or attribute.is_ref() or attribute.value is None:
        return None
    if attribute.type == ir.AttributeType.TENSOR:
        return attribute.as_tensor().numpy()
    if attribute.type in (ir.AttributeType.INT, ir.AttributeType.INTS):
        return np.asarray(attribute.value, dtype=np.int64)
    return None
