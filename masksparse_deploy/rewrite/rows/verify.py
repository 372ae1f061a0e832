"""Is the rows form of a rewritten file the sparse file's function? Read from the two files; shares no code with the rewriting.

The operators on rows are followed by what every row stands for: which positions of which tensors, times which slices of
weights, plus which constant. Where rows become images again, each position must stand for what the sparse file computes there.
Weights are compared bit for bit and positions one by one; only constants, which the rewriting adds up beforehand, are compared
to within the rounding of these sums.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from masksparse_deploy.graph.model import Array, Node
from masksparse_deploy.rewrite.rows.batches import Batches
from masksparse_deploy.rewrite.rows.expected import Expected, apply_elementwise, is_elementwise
from masksparse_deploy.rewrite.rows.symbols import Ids, Symbols
from masksparse_deploy.rewrite.trace import Held, Trace

__all__ = ["RowsReader"]

_TO_ROWS, _TO_IMAGES = (0, 2, 3, 1), (0, 3, 1, 2)
_ROW_AXIS = 1


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows of every sample of a batch, as symbols.

    Attributes:
        symbols: int64, with the axes of `form`, less the batch and the channels.
        channels: of a row.
        form: "rows" (batch, rows, channels); "images" (batch, height, width, channels); "windows" (batch, products,
            taps * channels); "matrix" (batch * products, taps * channels); "products" (batch * rows, channels).
    """

    symbols: Ids
    channels: int
    form: Literal["rows", "images", "windows", "matrix", "products"] = "rows"


class RowsReader:
    """Reads the operators on rows of a rewritten file, in its order.

    Attributes:
        covered: tensors of the sparse file whose operators were followed through the rows.
    """

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        self._symbols = Symbols()
        self._expected = Expected(trace.sparse, self._symbols)
        self.covered = self._expected.covered
        self._rows: dict[str, _Rows] = {}
        self._samples = Batches(trace)

    def read(self, trace: Trace, node: Node) -> bool:
        """Whether an operator on rows is understood; that images are other than the sparse file's goes to the findings."""
        if node.domain or len(node.outputs) != 1:
            return False
        (name,) = node.outputs
        if node.op == "Transpose" and node.attributes.get("perm") == _TO_IMAGES:
            return self._compare(trace, node)
        if name in trace.producers:
            return False
        if self._samples.read(node):
            return True
        reader = _READERS.get(node.op, RowsReader._elementwise)
        found = reader(self, node)
        if found is not None:
            self._rows[name] = found
        return found is not None

    def image(self, name: str) -> tuple[str, Ids] | None:
        """The rows that a tensor of the sparse file is in, and the row of each position, int64 (height, width)."""
        expected, size = self._expected.positions(name), self._expected.size(name)
        if expected is None or size is None:
            return None
        for found, rows in self._rows.items():
            if rows.form != "rows" or rows.channels != size[0]:
                continue
            places = {symbol: row for row, symbol in enumerate(rows.symbols.tolist())}
            if all(symbol in places for symbol in expected.reshape(-1).tolist()):
                return found, np.array([places[symbol] for symbol in expected.reshape(-1).tolist()]).reshape(expected.shape)
        return None

    def _compare(self, trace: Trace, node: Node) -> bool:
        """Hold images made of rows against what the sparse file computes under that name."""
        rows, (name,) = self._of(node.inputs[0], "images"), node.outputs
        if rows is None or name not in trace.producers:
            return False
        expected, size = self._expected.positions(name), self._expected.size(name)
        if expected is None or size != (rows.channels, *rows.symbols.shape):
            return False
        wrong = np.argwhere(expected != rows.symbols)
        if len(wrong):
            trace.findings.append(
                f"{name} is not what the sparse file computes in {len(wrong)} of {expected.size} positions, the first at row "
                f"{wrong[0][0]} and column {wrong[0][1]}"
            )
        trace.held[name] = Held(name)
        return True

    def _of(self, name: str, form: str = "rows") -> _Rows | None:
        rows = self._rows.get(name) or self._fixed(name)
        return rows if rows is not None and rows.form == form else None

    def _transpose(self, node: Node) -> _Rows | None:
        """Images of the sparse file, channels last."""
        held, size = self._trace.read(node.inputs[0]), self._expected.size(node.inputs[0])
        if held is None or not held.is_whole or held.tensor != node.inputs[0] or size is None:
            return None
        if node.attributes.get("perm") != _TO_ROWS:
            return None
        self._expected.boundaries.add(held.tensor)
        positions = self._expected.positions(held.tensor)
        return None if positions is None else _Rows(positions, size[0], "images")

    def _reshape(self, node: Node) -> _Rows | None:
        rows, target = self._rows.get(node.inputs[0]), self._trace.constant(node.inputs[1])
        if rows is None or target is None or node.attributes.get("allowzero", 0):
            return None
        shape, symbols, channels = tuple(target.tolist()), rows.symbols, rows.channels
        if rows.form == "images" and shape == (0, symbols.size, -1):
            return _Rows(symbols.reshape(-1), channels)
        if rows.form == "rows" and len(shape) == 4 and shape[0] == 0 and shape[3] == -1 and shape[1] * shape[2] == len(symbols):
            return _Rows(symbols.reshape(shape[1:3]), channels, "images")
        if (
            rows.form == "rows"
            and len(shape) == 3
            and shape[0] == 0
            and shape[2] == len(symbols) // max(shape[1], 1) * channels
        ):
            return _Rows(symbols.reshape(shape[1], -1), channels, "windows") if len(symbols) % shape[1] == 0 else None
        if rows.form == "rows" and len(shape) == 2 and shape[0] == -1 and shape[1] > 0 and shape[1] % channels == 0:
            taps = shape[1] // channels
            return None if len(symbols) % taps else _Rows(symbols.reshape(-1, taps), channels, "matrix")
        if rows.form == "products" and shape == (-1, len(symbols), channels):
            return _Rows(symbols, channels)
        return None

    def _gather(self, node: Node) -> _Rows | None:
        rows, indices = self._of(node.inputs[0]), self._trace.constant(node.inputs[1])
        if rows is None or indices is None or indices.ndim != 1 or node.attributes.get("axis", 0) != _ROW_AXIS:
            return None
        if indices.dtype.kind != "i" or len(indices) == 0 or indices.min() < 0 or indices.max() >= len(rows.symbols):
            return None
        return _Rows(rows.symbols[indices], rows.channels)

    def _concat(self, node: Node) -> _Rows | None:
        parts = [self._of(name) for name in node.inputs]
        known = [part for part in parts if part is not None]
        if len(known) < len(parts) or node.attributes.get("axis") != _ROW_AXIS or len({part.channels for part in known}) != 1:
            return None
        return _Rows(np.concatenate([part.symbols for part in known]), known[0].channels)

    def _fixed(self, name: str) -> _Rows | None:
        """Constant rows, stored for every sample of a fixed batch."""
        array = self._trace.constant(name)
        if array is None or array.ndim != 3 or array.dtype != np.float32 or array.shape[0] not in self._batches():
            return None
        if (array != array[:1]).any():
            return None
        return _Rows(np.array([self._symbols.constant(row) for row in array[0]], dtype=np.int64), array.shape[2])

    def _batches(self) -> set[int | None]:
        """The fixed batches of what the network reads, and of images that became rows; Concat refuses any other."""
        shapes = self._trace.sparse.shapes
        return {shapes[name][0] for name in (*self._trace.sparse.inputs, *self._expected.boundaries) if shapes.get(name)}

    def _expand(self, node: Node) -> _Rows | None:
        """Constant rows, for every sample of whatever batch."""
        array, shape = self._trace.constant(node.inputs[0]), self._samples.shape_behind(node.inputs[1])
        if array is None or array.dtype != np.float32 or array.ndim != 3 or array.shape[0] != 1 or array.shape[1:] != shape:
            return None
        return _Rows(np.array([self._symbols.constant(row) for row in array[0]], dtype=np.int64), array.shape[2])

    def _gemm(self, node: Node) -> _Rows | None:
        matrix = self._of(node.inputs[0], "matrix")
        weight, bias = (self._trace.constant(name) for name in (*node.inputs[1:], "")[:2])
        plain = all(node.attributes.get(name, value) == value for name, value in _GEMM_DEFAULTS.items())
        if matrix is None or weight is None or bias is None or not plain or weight.ndim != 2:
            return None
        if bias.shape != weight.shape[1:]:
            return None
        symbols = self._products(matrix.symbols, matrix.channels, weight, bias)
        return None if symbols is None else _Rows(symbols, weight.shape[1], "products")

    def _matmul(self, node: Node) -> _Rows | None:
        single, several = self._of(node.inputs[0]), self._of(node.inputs[0], "windows")
        windows, weight = single or several, self._trace.constant(node.inputs[1])
        if windows is None or weight is None or weight.ndim != 2:
            return None
        symbols = self._products(
            windows.symbols.reshape(len(windows.symbols), -1), windows.channels, weight, np.zeros(weight.shape[1], np.float32)
        )
        return None if symbols is None else _Rows(symbols, weight.shape[1])

    def _products(self, windows: Ids, channels: int, weight: Array, bias: Array) -> Ids | None:
        """Symbols of the rows of windows, int64 (products, taps), times a weight, and a bias."""
        taps = windows.shape[1]
        if weight.dtype != np.float32 or weight.shape[0] != taps * channels:
            return None
        slices = [self._symbols.weight_slice(part) for part in np.split(weight, taps)]
        start = self._symbols.constant(bias)
        return np.array([self._symbols.products(read, slices, start) for read in windows.tolist()], dtype=np.int64)

    def _scatter(self, node: Node) -> _Rows | None:
        """Rows added to some of others, each to one of its own; all samples' rows lie behind one another."""
        added, rows = self._of(node.inputs[2]), self._samples.rows(node.inputs[1])
        places = self._trace.constant(node.inputs[1])
        if rows is None and places is not None and places.ndim == 3 and len(places) in self._batches():
            rows = self._same_for_all(node.inputs[0], places)
        if rows is None or added is None or node.attributes != {"reduction": "add"}:
            return None
        numbers, count = rows
        to = self._flat(node.inputs[0], count)
        if to is None or to.channels != added.channels or len(numbers) != len(added.symbols):
            return None
        if len(np.unique(numbers)) != len(numbers) or numbers.min() < 0 or numbers.max() >= count:
            return None
        symbols = to.symbols.copy()
        pairs = zip(symbols[numbers].tolist(), added.symbols.tolist(), strict=True)
        symbols[numbers] = [self._symbols.total(pair) for pair in pairs]
        return _Rows(symbols, to.channels, "products")

    def _same_for_all(self, name: str, places: Array) -> tuple[Ids, int] | None:
        """Numbers of rows of one sample, and how many rows it has, of stored numbers (batch, count, 1) for every sample."""
        found, array = self._rows.get(name), self._trace.constant(name)
        count = len(found.symbols) if found is not None else 0 if array is None else len(array) // len(places)
        expected = places[0] + count * np.arange(len(places)).reshape(-1, 1, 1)
        is_same = places.dtype == np.int64 and places.shape[1] > 0 and places.shape[2] == 1 and (places == expected).all()
        return (places[0, :, 0], count) if is_same else None

    def _flat(self, name: str, count: int) -> _Rows | None:
        """Rows (batch * rows, channels), `count` of a sample: computed ones, or stored for every sample of a fixed batch."""
        rows, array = self._rows.get(name), self._trace.constant(name)
        if rows is not None and len(rows.symbols) == count and (rows.form == "products" or rows.symbols.shape[1:] == (1,)):
            return _Rows(rows.symbols.reshape(-1), rows.channels, "products")
        if array is None or array.ndim != 2 or array.dtype != np.float32 or count == 0 or len(array) % count:
            return None
        samples = array.reshape(-1, count, array.shape[1])
        if len(samples) not in self._batches() or (samples != samples[:1]).any():
            return None
        return _Rows(np.array([self._symbols.constant(row) for row in samples[0]], dtype=np.int64), array.shape[1], "products")

    def _elementwise(self, node: Node) -> _Rows | None:
        form: Literal["rows", "products"] = "rows" if self._of(node.inputs[0], "products") is None else "products"
        rows = [found for name in node.inputs if (found := self._of(name, form)) is not None]
        if not is_elementwise(node) or len({(len(part.symbols), part.channels) for part in rows}) != 1:
            return None
        channels, operands = rows[0].channels, []
        for name in node.inputs:
            found, constant = self._of(name, form), self._trace.constant(name)
            if found is None and name and (constant is None or constant.shape not in ((), (1,), (channels,))):
                return None
            operands.append(constant if found is None else found.symbols)
        return _Rows(apply_elementwise(self._symbols, node, operands, channels), channels, form)


_GEMM_DEFAULTS = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 0}
_READERS: Mapping[str, Callable[[RowsReader, Node], _Rows | None]] = {
    "Concat": RowsReader._concat,
    "Expand": RowsReader._expand,
    "Gather": RowsReader._gather,
    "Gemm": RowsReader._gemm,
    "MatMul": RowsReader._matmul,
    "Reshape": RowsReader._reshape,
    "ScatterND": RowsReader._scatter,
    "Transpose": RowsReader._transpose,
}
