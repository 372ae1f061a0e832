"""Operators that treat every number by itself, and so work on rows as they do on images."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.rows.builder import RowBuilder
from masksparse_deploy.rewrite.rows.layout import common_layout
from masksparse_deploy.rewrite.rows.tensor import RowTensor, rearranged

__all__ = ["add_elementwise", "is_elementwise", "row_inputs"]

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

# Operators of one tensor whose zeros stay zeros, besides Clip, where its bounds decide.
_KEEP_ZERO = {
    "Abs",
    "Celu",
    "Elu",
    "Gelu",
    "HardSwish",
    "Identity",
    "LeakyRelu",
    "Mish",
    "Neg",
    "PRelu",
    "Relu",
    "Selu",
    "Tanh",
}
_MOVE_ZERO = {"HardSigmoid", "Sigmoid", "Softplus"}
_BINARY = {"Add", "Mul", "Sub"}
_LEAKY_ALPHA = 0.01


def is_elementwise(node: ir.Node) -> bool:
    """Whether `node` gives rows for rows: operands are of one size, a constant is one number, or one for each channel."""
    if node.domain not in ("", "ai.onnx") or node.op_type not in _BINARY | _KEEP_ZERO | _MOVE_ZERO | {"Clip"}:
        return False
    images = row_inputs(node)
    sizes = {_size(value) for value in images}
    if len(sizes) != 1 or None in sizes:
        return False
    return all(_fits(_stored(value), images[0]) for value in node.inputs if value is not None and value not in images)


def row_inputs(node: ir.Node) -> list[ir.Value]:
    """The inputs that are images, not constants."""
    given = node.inputs if node.op_type in _BINARY else node.inputs[:1]
    return [value for value in given if value is not None and _stored(value) is None]


def add_elementwise(build: RowBuilder, node: ir.Node, tensors: Sequence[RowTensor]) -> RowTensor:
    """The same operator on rows.

    Tensors in different layouts are first brought into one, in which positions share a row that are masked in all of them.

    Args:
        build: where to.
        node: for which `is_elementwise` holds.
        tensors: those of `row_inputs`, in their order.
    """
    if len({id(tensor.layout) for tensor in tensors}) > 1:
        layout = common_layout([tensor.layout for tensor in tensors])
        tensors = [rearranged(build, tensor, layout) for tensor in tensors]
    images = dict(zip(row_inputs(node), tensors, strict=True))
    inputs: list[ir.Value | None] = []
    operands: list[Array | None] = []
    for value in node.inputs:
        if value is None:
            inputs.append(None)
            operands.append(None)
        elif value in images:
            inputs.append(images[value].value)
            operands.append(images[value].constant)
        else:
            array = _as_operand(_stored(value))
            inputs.append(build.constant(array, f"{value.name}.rows"))
            operands.append(array)
    result = build.add(node.op_type, inputs, f"{node.name}.rows", node.attributes)
    first = tensors[0]
    layout = first.layout if _keeps_zero(node) else replace(first.layout, zero_row=None)
    constant = None if first.layout.is_complete else _exactly(node, operands)
    return replace(first, value=result, layout=layout, constant=constant)


def _keeps_zero(node: ir.Node) -> bool:
    """Whether rows of zeros stay so."""
    if node.op_type == "Clip":
        low, high = _bounds(node)
        return (low is None or bool(low <= 0)) and (high is None or bool(high >= 0))
    if node.op_type in ("Add", "Sub"):
        return len(row_inputs(node)) == 2
    return node.op_type in _KEEP_ZERO | {"Mul"}


def _exactly(node: ir.Node, operands: Sequence[Array | None]) -> Floats | None:
    """What becomes of a constant row, float32 (channels,); None where runtimes may differ in it.

    These operators round once at most, so that IEEE arithmetic leaves no choice.
    """
    x, op = operands[0], node.op_type
    result: Array | None = None
    if x is None or (op in {*_BINARY, "PRelu"} and operands[1] is None):
        return None
    if op in _BINARY:
        other = operands[1]
        result = x + other if op == "Add" else x - other if op == "Sub" else x * other
    elif op == "Relu":
        result = np.maximum(x, 0)
    elif op in ("LeakyRelu", "PRelu"):
        slope = operands[1] if op == "PRelu" else np.float32(node.attributes.get_float("alpha", _LEAKY_ALPHA))
        result = np.where(x < 0, slope * x, x)
    elif op == "Clip":
        low, high = _bounds(node)
        result = x if low is None and high is None else np.clip(x, low, high)
    elif op in ("Abs", "Identity", "Neg"):
        result = np.abs(x) if op == "Abs" else -x if op == "Neg" else x
    return None if result is None else np.asarray(result, dtype=np.float32)


def _bounds(clip: ir.Node) -> tuple[Array | None, Array | None]:
    low, high = (None if value is None else _stored(value) for value in (*clip.inputs[1:], None, None)[:2])
    return low, high


def _stored(value: ir.Value) -> Array | None:
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _size(value: ir.Value) -> tuple[int, ...] | None:
    """Channels, height and width, if they are fixed."""
    lengths = () if value.shape is None else tuple(value.shape)[1:]
    fixed = tuple(length for length in lengths if isinstance(length, int))
    return fixed if len(fixed) == len(lengths) == 3 else None


def _fits(array: Array | None, images: ir.Value) -> bool:
    """Whether a constant is one number, or one for each channel of images (batch, channels, height, width)."""
    size = _size(images)
    if array is None or size is None:
        return False
    return array.size == 1 or (array.ndim in (3, 4) and array.size == array.shape[-3] == size[0])


def _as_operand(array: Array | None) -> Array:
    """A constant as rows (batch, rows, channels) take it."""
    assert array is not None, "is_elementwise asks for constants"
    return array.reshape(-1) if array.size > 1 else array.reshape(())
