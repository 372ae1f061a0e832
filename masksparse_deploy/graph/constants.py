"""Which values of a graph are stored constants in disguise, and which do not depend on its input at all."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx.helper
import onnx.numpy_helper

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.layout import LayoutStep
from masksparse_deploy.graph.model import Array, Graph, Node

__all__ = ["Origin", "Origins"]

_LAYOUT = ("Transpose", "Reshape", "Squeeze", "Unsqueeze")
_VALUES = ("Identity", "Cast", "QuantizeLinear", "DequantizeLinear")
# Exporters make routes of a few operators; a longer one is not followed, so that no file keeps the reader busy.
_LONGEST_ROUTE = 16


@dataclass(frozen=True, eq=False, kw_only=True)
class Origin:
    """Where a constant comes from.

    Attributes:
        name: the initializer or Constant.
        stored: its array, in the stored dtype.
        metadata: metadata_props of the initializer.
        nodes: the operators it passes through, in order; empty for a constant that is read directly.
        parameters: for each of `nodes` its other inputs, None for one left out.
    """

    name: str
    stored: Array
    metadata: Mapping[str, str]
    nodes: tuple[Node, ...]
    parameters: tuple[tuple[Array | None, ...], ...]

    @property
    def route(self) -> tuple[str, ...]:
        """Operator types from the stored constant on."""
        return tuple(node.op for node in self.nodes)

    def compute(self) -> tuple[Array, tuple[LayoutStep, ...], str | None]:
        """The value that arrives, how it was turned round, and the dtype it was dequantized from.

        Raises:
            ArtifactError: an operator has parameters that do not fit the array.
        """
        value, steps, quantized = self.stored, [], None
        for node, parameters in zip(self.nodes, self.parameters, strict=True):
            try:
                result = _OPERATORS[node.op](node, value, parameters)
            except (ValueError, IndexError, TypeError, KeyError, OverflowError, AttributeError) as error:
                raise ArtifactError(
                    f"{node.op} {node.name!r} cannot be applied to {self.name} of shape {value.shape} ({error}); the file is "
                    "damaged or not valid ONNX: export it again"
                ) from error
            if node.op in _LAYOUT:
                order = _order(node, value.ndim) if node.op == "Transpose" else None
                steps.append(LayoutStep(before=value.shape, after=result.shape, order=order))
            elif node.op == "DequantizeLinear":
                quantized = value.dtype.name
            value = result
        return value, tuple(steps), quantized


class Origins:
    """Finds the origins of the constants that one graph can read."""

    def __init__(self, graph: Graph, outer: "Origins | None" = None) -> None:
        """`outer` finds those of the graph around a body, which the body reads by their names there."""
        self._outer = outer
        self._constants = graph.constants
        self._metadata = graph.constant_metadata
        self._own = {*graph.constants, *graph.inputs, *(output for node in graph.nodes for output in node.outputs)}
        self._makers: dict[str, tuple[Node, tuple[Array | None, ...]]] = {}
        self._lengths: dict[str, int] = {}
        self._fixed = set(graph.constants)
        for node in graph.nodes:
            self._add(node)
            inputs = [name for name in node.inputs if name]
            if inputs and all(self.is_fixed(name) for name in inputs):
                self._fixed.update(node.outputs)

    def find(self, name: str) -> Origin | None:
        """The origin of the value `name`; None if it is no constant, or computed by operators that are not looked through."""
        if name not in self._own:
            return None if self._outer is None else self._outer.find(name)
        if name in self._constants:
            metadata = self._metadata.get(name, {})
            return Origin(name=name, stored=self._constants[name], metadata=metadata, nodes=(), parameters=())
        if name not in self._makers:
            return None
        node, parameters = self._makers[name]
        before = self.find(node.inputs[0])
        assert before is not None, "only operators on constants are looked through"
        return Origin(
            name=before.name,
            stored=before.stored,
            metadata=before.metadata,
            nodes=(*before.nodes, node),
            parameters=(*before.parameters, parameters),
        )

    def is_fixed(self, name: str) -> bool:
        """Whether the value `name` is the same for every input of the network, by whatever operators it is computed."""
        if name not in self._own:
            return self._outer is not None and self._outer.is_fixed(name)
        return name in self._fixed

    def _length(self, name: str) -> int | None:
        """How many operators lie between the value `name` and its constant; None if it has no origin."""
        if name not in self._own:
            return None if self._outer is None else self._outer._length(name)
        return 0 if name in self._constants else self._lengths.get(name)

    def _add(self, node: Node) -> None:
        """Look through `node` if its first input is a constant, and the others are stored as such."""
        if not _looked_through(node):
            return
        length = self._length(node.inputs[0])
        if length is None or length == _LONGEST_ROUTE:
            return
        parameters = tuple(self._parameter(name) for name in node.inputs[1:])
        if any(name and array is None for name, array in zip(node.inputs[1:], parameters, strict=True)):
            return
        self._makers[node.outputs[0]], self._lengths[node.outputs[0]] = (node, parameters), length + 1

    def _parameter(self, name: str) -> Array | None:
        """A scale, zero point, shape or axes: a constant, perhaps behind Identity."""
        origin = self.find(name) if name else None
        return origin.stored if origin is not None and set(origin.route) <= {"Identity"} else None


def _looked_through(node: Node) -> bool:
    if node.domain or node.op not in _LAYOUT + _VALUES or not node.inputs or not node.outputs:
        return False
    # what a cast to text or truth values leaves of a weight is no weight
    to = node.attributes.get("to")
    return node.op != "Cast" or to not in (onnx.TensorProto.STRING, onnx.TensorProto.BOOL)


def _order(node: Node, rank: int) -> tuple[int, ...]:
    order = tuple(node.attributes.get("perm", range(rank)[::-1]))
    if sorted(order) != list(range(rank)):
        raise ValueError(f"perm {order} for {rank} axes")
    return order


def _identity(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    return value


def _cast(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    dtype = onnx.helper.tensor_dtype_to_np_dtype(node.attributes["to"])
    if dtype == value.dtype:
        return value
    with np.errstate(all="ignore"):  # overflow to infinity is what the cast is defined to do
        if node.attributes.get("saturate", 1) and dtype.name.startswith("float8"):
            return onnx.numpy_helper.saturate_cast(value.astype(np.float32), dtype)
        return value.astype(dtype)


def _transpose(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    return value.transpose(_order(node, value.ndim))


def _reshape(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    given = node.attributes["shape"] if not parameters else _present(parameters[0]).tolist()
    keeps_zero = node.attributes.get("allowzero", 0)
    return value.reshape([value.shape[axis] if length == 0 and not keeps_zero else length for axis, length in enumerate(given)])


def _squeeze(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    axes = _axes(node, parameters)
    return value.squeeze() if axes is None else value.squeeze(axis=axes)


def _unsqueeze(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    axes = _axes(node, parameters)
    if axes is None:
        raise ValueError("no axes")
    return np.expand_dims(value, axes)


def _axes(node: Node, parameters: tuple[Array | None, ...]) -> tuple[int, ...] | None:
    """From the second input, or from the attribute of older opsets."""
    if parameters and parameters[0] is not None:
        return tuple(int(axis) for axis in parameters[0].reshape(-1))
    axes = node.attributes.get("axes")
    return None if axes is None else tuple(axes)


def _quantize(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    scale = _spread(node, value, _present(parameters[0]))
    point = parameters[1] if len(parameters) > 1 else None
    given = node.attributes.get("output_dtype", 0)
    dtype = onnx.helper.tensor_dtype_to_np_dtype(given) if given else point.dtype if point is not None else np.dtype(np.uint8)
    with np.errstate(all="ignore"):  # a scale of zero gives what it gives in any runtime: infinities that saturate
        scaled = value.astype(np.float32) / scale
        if dtype.name.startswith("float8"):
            return onnx.numpy_helper.saturate_cast(scaled, dtype)
        if dtype.name.startswith("float"):
            return scaled.astype(dtype)
        offset = np.float32(0) if point is None else _spread(node, value, point)
        limits = _integer_limits(dtype)
        levels: Array = np.nan_to_num(np.clip(np.rint(scaled) + offset, *limits)).astype(np.int32).astype(dtype)
        return levels


def _dequantize(node: Node, value: Array, parameters: tuple[Array | None, ...]) -> Array:
    scale = _present(parameters[0])
    point = parameters[1] if len(parameters) > 1 else None
    real = value.astype(np.float32)
    with np.errstate(all="ignore"):
        if point is not None and point.any():
            real -= _spread(node, value, point)
        real *= _spread(node, value, scale)
        # the operator's output has the scale's type
        return real if scale.dtype == np.float32 else real.astype(scale.dtype).astype(np.float32)


def _integer_limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    """Smallest and largest value of an integer type, those of 2 and 4 bits included."""
    bits = int(dtype.name.removeprefix("u").removeprefix("int"))
    return (0, 2**bits - 1) if dtype.name.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)


def _spread(node: Node, value: Array, parameter: Array) -> Array:
    """A scale or zero point, float32, in a shape that broadcasts: for the tensor, each index of an axis, or each block."""
    parameter = parameter.astype(np.float32)
    if parameter.size == 1:
        return parameter.reshape(())
    axis = int(node.attributes.get("axis", 1))
    axis = axis + value.ndim if axis < 0 else axis
    block = int(node.attributes.get("block_size", 0))
    if not block:
        if parameter.ndim != 1 or parameter.shape[0] != value.shape[axis]:
            raise ValueError(f"scales of shape {parameter.shape} for axis {axis}")
        return parameter.reshape([-1 if place == axis else 1 for place in range(value.ndim)])
    if parameter.ndim != value.ndim or parameter.shape[axis] != -(-value.shape[axis] // block):
        raise ValueError(f"scales of shape {parameter.shape} for blocks of {block} along axis {axis}")
    index = np.arange(value.shape[axis]) // block
    return parameter.take(index, axis=axis)


def _present(parameter: Array | None) -> Array:
    if parameter is None:
        raise ValueError("a required input is left out")
    return parameter


_OPERATORS: Mapping[str, Callable[[Node, Array, tuple[Array | None, ...]], Array]] = {
    "Cast": _cast,
    "DequantizeLinear": _dequantize,
    "Identity": _identity,
    "QuantizeLinear": _quantize,
    "Reshape": _reshape,
    "Squeeze": _squeeze,
    "Transpose": _transpose,
    "Unsqueeze": _unsqueeze,
}
