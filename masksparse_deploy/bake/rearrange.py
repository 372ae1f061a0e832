"""What operators between a stored constant and its use do to the places of its elements."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.bake.stored import fixed_array

__all__ = ["Rearrangement", "rearranged_by", "to_stored"]

Shape = tuple[int, ...]
_Scalar = TypeVar("_Scalar", bound=np.generic)


@dataclass(frozen=True, kw_only=True)
class Rearrangement:
    """An operator that keeps every element of its first input, at another place or in another unit.

    Attributes:
        op: operator type.
        shape_before: of its input.
        shape_after: of its output; axis i of the output is axis order[i] of the input where the operator has an order.
        order: of a Transpose; None where the elements keep their row-major order.
        obstacle: why a zero does not stay a zero, in words; empty if it does.
    """

    op: str
    shape_before: Shape
    shape_after: Shape
    order: Shape | None = None
    obstacle: str = ""

    def axis_before(self, axis: int) -> int | None:
        """The axis of the input that axis `axis` of the output is; None if it is only a part of one, or several."""
        if self.order is not None:
            return self.order[axis]
        length, outer = self.shape_after[axis], prod(self.shape_after[:axis])
        same = (
            index for index, size in enumerate(self.shape_before) if size == length and prod(self.shape_before[:index]) == outer
        )
        return next(same, None)


def to_stored(array: npt.NDArray[_Scalar], route: Sequence[Rearrangement]) -> npt.NDArray[_Scalar]:
    """Bring an array from the shape of the operand into that of the constant that `route` starts from; a view if possible."""
    for step in reversed(route):
        array = array.reshape(step.shape_before) if step.order is None else np.transpose(array, np.argsort(step.order))
    return array


def rearranged_by(node: ir.Node, shape: Shape) -> Rearrangement | None:
    """What `node` does to a constant of that shape on its first input; None if it computes something else from it."""
    if node.domain not in ("", "ai.onnx"):
        return None
    after: Shape | None = shape
    order = None
    obstacle = ""
    if node.op_type == "Transpose":
        order = _order(node, len(shape))
        after = None if order is None else tuple(shape[axis] for axis in order)
    elif node.op_type == "Reshape":
        after = _reshaped(node, shape)
    elif node.op_type in ("Squeeze", "Unsqueeze"):
        after = _squeezed(node, shape)
    elif node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        obstacle = _zero_point_obstacle(node)
    elif node.op_type not in ("Identity", "Cast"):
        return None
    if after is None or prod(after) != prod(shape):
        return None
    return Rearrangement(op=node.op_type, shape_before=shape, shape_after=after, order=order, obstacle=obstacle)


def _order(node: ir.Node, rank: int) -> Shape | None:
    attribute = node.attributes.get("perm")
    if attribute is None:
        return tuple(range(rank))[::-1]
    order = () if attribute.is_ref() else tuple(attribute.as_ints())
    return order if sorted(order) == list(range(rank)) else None


def _reshaped(node: ir.Node, shape: Shape) -> Shape | None:
    target = fixed_array(node.inputs[1]) if len(node.inputs) > 1 else None
    allow_zero = node.attributes.get("allowzero")
    if target is None or target.dtype.kind != "i" or (allow_zero is not None and allow_zero.is_ref()):
        return None
    keeps = allow_zero is None or not allow_zero.as_int()
    given = target.reshape(-1).tolist()
    if keeps and 0 in given[len(shape) :]:
        return None
    sizes = [shape[index] if size == 0 and keeps else int(size) for index, size in enumerate(given)]
    known = prod(size for size in sizes if size != -1)
    if min(sizes, default=0) < -1:
        return None
    return tuple(prod(shape) // known if size == -1 and known else size for size in sizes)


def _squeezed(node: ir.Node, shape: Shape) -> Shape | None:
    axes = _axes(node)
    if node.op_type == "Squeeze":
        if axes is None and len(node.inputs) < 2 and "axes" not in node.attributes:
            return tuple(size for size in shape if size != 1)
        if axes is None:
            return None
        dropped = {axis % max(len(shape), 1) for axis in axes}
        return tuple(size for index, size in enumerate(shape) if index not in dropped)
    if axes is None:
        return None
    rank = len(shape) + len(axes)
    added = {axis % rank for axis in axes if rank}
    if len(added) < len(axes):
        return None
    sizes = iter(shape)
    return tuple(1 if index in added else next(sizes) for index in range(rank))


def _axes(node: ir.Node) -> tuple[int, ...] | None:
    """Since opset 13 an input, before an attribute."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return None if attribute.is_ref() else tuple(attribute.as_ints())
    axes: npt.NDArray[Any] | None = fixed_array(node.inputs[1]) if len(node.inputs) > 1 else None
    return None if axes is None or axes.dtype.kind != "i" else tuple(int(axis) for axis in axes.reshape(-1))


def _zero_point_obstacle(node: ir.Node) -> str:
    """0 stands for 0 only where the zero point is 0."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None:
        return ""
    zero_point = fixed_array(value)
    if zero_point is None:
        return f"the zero point of {node.name} ({node.op_type}) is computed"
    return f"{node.name} ({node.op_type}) has a zero point other than 0" if zero_point.astype(np.float32).any() else ""
