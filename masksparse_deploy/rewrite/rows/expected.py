"""What every position of a tensor of the sparse file is, as symbols, read from that file alone."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from masksparse_deploy.graph.activations import ACTIVATIONS
from masksparse_deploy.graph.geometry import conv_geometry
from masksparse_deploy.graph.model import Array, Graph, Node
from masksparse_deploy.rewrite.rows.symbols import Floats, Ids, Symbols

__all__ = ["Expected", "apply_elementwise", "is_elementwise"]

# Operators of one image that the rows form takes, and those of two.
_ONE = {
    *(
        "Abs",
        "Celu",
        "Clip",
        "Elu",
        "Gelu",
        "HardSigmoid",
        "HardSwish",
        "Identity",
        "LeakyRelu",
        "Mish",
        "Neg",
        "PRelu",
        "Relu",
    ),
    *("Selu", "Sigmoid", "Softplus", "Tanh"),
}
_TWO = {"Add", "Mul", "Sub"}
_FLOAT32_ROUNDING = 2.0**-24
_LEAKY_ALPHA = 0.01


class Expected:
    """The positions of the sparse file's tensors.

    Attributes:
        boundaries: tensors that the rewritten file takes as images; their positions are not taken apart further.
        covered: tensors whose operators were taken apart.
    """

    def __init__(self, graph: Graph, symbols: Symbols) -> None:
        self._graph = graph
        self._symbols = symbols
        self._producers = {name: node for node in graph.nodes for name in node.outputs if name}
        self._known: dict[str, Ids] = {}
        self.boundaries: set[str] = set()
        self.covered: set[str] = set()

    def size(self, tensor: str) -> tuple[int, int, int] | None:
        """Channels, height and width, if they are fixed."""
        shape = self._graph.shapes.get(tensor, ())
        lengths = [length for length in shape[1:] if length is not None]
        return (lengths[0], lengths[1], lengths[2]) if len(shape) == 4 and len(lengths) == 3 else None

    def positions(self, tensor: str) -> Ids | None:
        """The symbol of each position, (height, width); None where the file does not fix the size."""
        pending = [tensor]
        while pending:  # networks are deeper than Python's recursion
            name = pending[-1]
            missing = [read for read in self._read_by(name) if read not in self._known]
            if name in self._known or not missing:
                pending.pop()
                if name not in self._known:
                    size = self.size(name)
                    if size is None:
                        return None
                    self._known[name] = self._computed(name, size)
            else:
                pending += missing
        return self._known[tensor]

    def _read_by(self, tensor: str) -> list[str]:
        """The images that the positions of a tensor are made of; none if it is not taken apart."""
        node = None if tensor in self.boundaries else self._producers.get(tensor)
        if node is None or node.domain:
            return []
        constants = self._graph.constants
        if node.op == "Conv" and node.attributes.get("group", 1) == 1:
            return [node.inputs[0]] if all(name in constants for name in node.inputs[1:] if name) else []
        if node.op == "Where" and node.inputs[0] in constants:
            keep, dropped = constants[node.inputs[0]], constants.get(node.inputs[2])
            is_mask = keep.ndim <= 4 and set(keep.shape[:-2]) <= {1}
            return [node.inputs[1]] if is_mask and self._is_of_channels(dropped, node.inputs[1]) else []
        if node.op in _ONE | _TWO:
            images = [name for name in node.inputs if name and name not in constants]
            fit = all(self._is_of_channels(constants[name], tensor) for name in node.inputs if name in constants)
            if images and fit and len({self.size(name) for name in (*images, tensor)}) == 1:
                return images
        return []

    def _is_of_channels(self, array: Array | None, tensor: str) -> bool:
        """Whether a constant is one number, or one for each channel of a tensor, the same for all samples and positions."""
        size = self.size(tensor)
        if array is None or size is None or array.ndim > 4:
            return False
        return array.size == 1 or (array.ndim > 2 and array.size == array.shape[-3] == size[0])

    def _computed(self, tensor: str, size: tuple[int, int, int]) -> Ids:
        channels, height, width = size
        if not self._read_by(tensor):
            return self._symbols.pixels(tensor, height * width).reshape(height, width)
        self.covered.add(tensor)
        node = self._producers[tensor]
        if node.op == "Conv":
            return self._convolution(node, (height, width))
        if node.op == "Where":
            keep, values = self._graph.constants[node.inputs[0]], self._graph.constants[node.inputs[2]]
            dropped = self._symbols.constant(np.broadcast_to(values, (1, channels, 1, 1)).reshape(-1))
            return np.where(np.broadcast_to(keep, (1, 1, height, width))[0, 0], self._known[node.inputs[1]], dropped)
        operands = [
            None if not name else self._known[name].reshape(-1) if name in self._known else self._graph.constants[name]
            for name in node.inputs
        ]
        return apply_elementwise(self._symbols, node, operands, channels).reshape(height, width)

    def _convolution(self, node: Node, size: tuple[int, int]) -> Ids:
        symbols, source = self._symbols, self._known[node.inputs[0]]
        weight = self._graph.constants[node.inputs[1]]
        bias = self._graph.constants[node.inputs[2]] if len(node.inputs) > 2 and node.inputs[2] else np.zeros(len(weight))
        start = symbols.constant(bias)
        strides, (top, left, _, _), dilations = conv_geometry(node, source.shape, weight.shape[2:])
        taps = [(y, x) for y in range(weight.shape[2]) for x in range(weight.shape[3])]
        slices = [symbols.weight_slice(weight[:, :, y, x].T) for y, x in taps]
        result = np.empty(size, dtype=np.int64)
        for row, column in np.ndindex(*size):
            places = [
                (row * strides[0] - top + y * dilations[0], column * strides[1] - left + x * dilations[1]) for y, x in taps
            ]
            inside = [index for index, (y, x) in enumerate(places) if 0 <= y < source.shape[0] and 0 <= x < source.shape[1]]
            read = [int(source[places[index]]) for index in inside]
            result[row, column] = symbols.products(read, [slices[index] for index in inside], start)
        return result


def is_elementwise(node: Node) -> bool:
    """Whether an operator changes every number by itself."""
    return node.op in _ONE | _TWO


def apply_elementwise(symbols: Symbols, node: Node, operands: Sequence[Any], channels: int) -> Ids:
    """What an elementwise operator makes of rows.

    Args:
        symbols: the rows known so far.
        node: the operator.
        operands: for each input the symbols of rows, int64 (rows,); a constant of floats, one for each channel or one for all;
            None for an input left out.
        channels: of a row.
    """
    rows = [
        operand
        if operand.dtype == np.int64
        else np.array([symbols.constant(np.broadcast_to(operand.reshape(-1), (channels,)))], dtype=np.int64)
        for operand in operands
        if operand is not None
    ]
    count = max(map(len, rows))
    together = zip(*(np.broadcast_to(row, (count,)).tolist() for row in rows), strict=True)
    present = [operand is not None for operand in operands]
    known: dict[tuple[int, ...], int] = {}
    return np.array(
        [known.get(one) or known.setdefault(one, _applied(symbols, node, one, present)) for one in together], dtype=np.int64
    )


def _applied(symbols: Symbols, node: Node, rows: tuple[int, ...], present: Sequence[bool]) -> int:
    """A sum as such, a constant where all rows are known well enough, else a symbol for the operator on these rows."""
    if node.op == "Add":
        return symbols.total(rows)
    values = [value for row in rows if (value := symbols.constant_value(row)) is not None]
    slack = _slack(node, values) if len(values) == len(rows) else None
    if slack is None:
        attributes = sorted(node.attributes.items())
        return symbols.applied(f"{node.op} {attributes} {list(present)}", rows)
    given = iter(values)
    result = _computed(node, [next(given)[0] if there else None for there in present])
    is_exact = not slack.any() and result == result.astype(np.float32)
    return symbols.constant(result, np.where(is_exact, 0, slack + _FLOAT32_ROUNDING * (np.abs(result) + slack)))


def _slack(node: Node, values: Sequence[tuple[Floats, Floats]]) -> Floats | None:
    """How far what an operator makes of constants may be off where these are, its own rounding left out; None if unknown.

    Args:
        node: the operator.
        values: its operands, and how far each may be off.
    """
    slacks = [slack for _, slack in values]
    if not any(slack.any() for slack in slacks):
        return np.zeros_like(slacks[0])
    (x, off), *others = values
    if node.op == "Mul":
        y, other = others[0]
        return np.abs(x) * other + np.abs(y) * off + off * other
    if node.op == "PRelu":
        slope, other = others[0]
        return np.maximum(1, np.abs(slope)) * off if not other.any() else None
    if node.op == "LeakyRelu":
        return off * max(1.0, abs(float(node.attributes.get("alpha", _LEAKY_ALPHA))))
    # of slope 1 at most in every operand
    together: Floats = np.sum(slacks, axis=0)
    return together if node.op in ("Abs", "Clip", "Identity", "Neg", "Relu", "Sub") else None


def _computed(node: Node, inputs: Sequence[Floats | None]) -> Floats:
    if node.op in ("Mul", "Sub"):
        first, second = inputs
        assert first is not None and second is not None, "both operands are required"
        return first * second if node.op == "Mul" else first - second
    if node.op == "Identity":
        assert inputs[0] is not None, "the operand is required"
        return inputs[0]
    return np.asarray(ACTIVATIONS[node.op](node, inputs), dtype=np.float64)
