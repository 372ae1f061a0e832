"""Operators on rows (batch, rows, channels), put into a graph before the operator that they stand for."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.names import Names, add_constant
from masksparse_deploy.rewrite.rows.layout import Indices

__all__ = ["RowBuilder"]

Floats = npt.NDArray[np.float32]
_ROW_AXIS = 1
# The operator sets from which on Shape gives the lengths of some axes alone, and ScatterND adds.
_SHAPE_OF_AXES, _ADDING_SCATTER = 15, 16


class RowBuilder:
    """Adds operators and constants to a graph; any batch that the model takes stays possible."""

    def __init__(self, model: ir.Model) -> None:
        self._graph = model.graph
        self._opset = model.opset_imports.get("", _SHAPE_OF_AXES)
        self._names = Names(model.graph)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], ir.Value] = {}
        self._batches: dict[ir.Value, ir.Value] = {}
        self._starts: dict[tuple[ir.Value, int], ir.Value] = {}
        self.before: ir.Node | None = None

    @property
    def can_add(self) -> bool:
        """Whether the file's operators can add rows to others, as `added` does."""
        return self._opset >= _ADDING_SCATTER

    def add(
        self, op: str, inputs: Sequence[ir.Value | None], name: str, attributes: Mapping[str, Any] | None = None
    ) -> ir.Value:
        """One operator; returns its output."""
        name = self._names.unused(name)
        node = ir.node(op, list(inputs), attributes, name=name)
        node.outputs[0].name = self._names.unused(f"{name}.out")
        assert self.before is not None, "the place is set first"
        self._graph.insert_before(self.before, node)
        return node.outputs[0]

    def constant(self, array: npt.NDArray[Any], name: str) -> ir.Value:
        """A stored constant; the same one for the same content."""
        array = np.asarray(array, order="C")
        key = array.dtype.str, array.shape, array.tobytes()
        if key not in self._constants:
            self._constants[key] = add_constant(self._graph, self._names, name, array)
        return self._constants[key]

    def gather(self, rows: ir.Value, indices: Indices, name: str) -> ir.Value:
        """The rows of these numbers, in their order."""
        inputs = [rows, self.constant(indices.astype(np.int32), f"{name}.indices")]
        return self.add("Gather", inputs, name, {"axis": _ROW_AXIS})

    def reshape(self, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
        """0 keeps a length, -1 takes what is left."""
        return self.add("Reshape", [value, self.constant(np.array(shape, dtype=np.int64), f"{name}.shape")], name)

    def product(
        self, rows: ir.Value, indices: Indices, weight: Floats, bias: Floats, name: str, *, has_relu: bool = False
    ) -> ir.Value:
        """A product and a bias for each row of windows, weight^T x + bias, as rows (batch, count, out_channels).

        Args:
            rows: the tensor to gather from.
            indices: int64 (count, taps).
            weight: float32 (taps * in_channels, out_channels).
            bias: float32 (out_channels,).
            name: of the matrix product.
            has_relu: whether a Relu follows right behind the product, where runtimes make one operator of both.
        """
        gathered = self.gather(rows, indices.reshape(-1), f"{name}.gather")
        matrix = self.reshape(gathered, [-1, weight.shape[0]], f"{name}.matrix")
        weights = self.constant(weight, f"{name}.weight"), self.constant(bias, f"{name}.bias")
        product = self.add("Gemm", [matrix, *weights], name)
        if has_relu:
            product = self.add("Relu", [product], f"{name}.relu")
        return self.reshape(product, [-1, len(indices), weight.shape[1]], f"{name}.rows")

    def added(
        self, sums: Floats, products: Sequence[tuple[Indices, Indices, Floats]], rows: ir.Value, like: ir.Value, name: str
    ) -> ir.Value:
        """Products for rows of windows, each added to some rows, as rows (batch, count, out_channels).

        Args:
            sums: float32 (count, out_channels), what the rows hold to begin with.
            products: for each the rows that it is added to, int64 (windows,), all different; what it multiplies, int64
                (windows, taps), as in `product`; and its weight, float32 (taps * in_channels, out_channels).
            rows: the tensor to gather from.
            like: images of as many samples.
            name: of the sums.
        """
        if not products:
            return self.fixed_rows(sums, like, name)
        count, channels = sums.shape
        batch = None if like.shape is None else like.shape[0]
        if isinstance(batch, int):
            value = self.constant(np.tile(sums, (batch, 1)), f"{name}.start")
        else:
            value = self.reshape(self.fixed_rows(sums, like, f"{name}.start"), [-1, channels], f"{name}.flat")
        for number, (places, indices, weight) in enumerate(products):
            part = f"{name}.{number}"
            gathered = self.gather(rows, indices.reshape(-1), f"{part}.gather")
            if indices.shape[1] > 1:
                gathered = self.reshape(gathered, [0, len(indices), len(weight)], f"{part}.windows")
            product = self.add("MatMul", [gathered, self.constant(weight, f"{part}.weight")], part)
            if isinstance(batch, int):
                every = (places + count * np.arange(batch)[:, None])[..., None]
                numbers = self.constant(every, f"{part}.places")
            else:
                stored = self.constant(places[None, :, None], f"{part}.places")
                numbers = self.add("Add", [stored, self._first_rows(like, count)], f"{part}.numbers")
            value = self.add("ScatterND", [value, numbers, product], f"{part}.add", {"reduction": "add"})
        return self.reshape(value, [-1, count, channels], f"{name}.rows")

    def _first_rows(self, images: ir.Value, count: int) -> ir.Value:
        """The number of the first row of each sample, int64 (batch, 1, 1), where every sample has `count` rows."""
        batch = self._batch_of(images)
        if (batch, count) not in self._starts:
            name = f"{batch.name}.times_{count}"
            single = self.add("Squeeze", [batch], f"{name}.single")
            zero, step = (self.constant(np.array(number, dtype=np.int64), f"rows.{number}") for number in (0, count))
            numbers = self.add("Range", [zero, self.add("Mul", [single, step], f"{name}.end"), step], name)
            self._starts[batch, count] = self.reshape(numbers, [-1, 1, 1], f"{name}.column")
        return self._starts[batch, count]

    def fixed_rows(self, values: Floats, like: ir.Value, name: str) -> ir.Value:
        """Rows with these values, float32 (rows, channels), for every sample that the images `like` hold."""
        stored = self.constant(values[None], name)
        batch = None if like.shape is None else like.shape[0]
        if isinstance(batch, int):
            if batch == 1:
                return stored
            return self.constant(np.repeat(values[None], batch, axis=0), f"{name}.batch")
        size = self.constant(np.array(values.shape, dtype=np.int64), f"{name}.size")
        shape = self.add("Concat", [self._batch_of(like), size], f"{name}.shape", {"axis": 0})
        return self.add("Expand", [stored, shape], f"{name}.expand")

    def _batch_of(self, images: ir.Value) -> ir.Value:
        """How many samples there are: as many as the network's, where the file tells that by the same name."""
        first = next(value for value in self._graph.inputs if not value.is_initializer())
        batches = [None if value.shape is None else value.shape[0] for value in (first, images)]
        names = [batch.value for batch in batches if isinstance(batch, ir.SymbolicDim)]
        source = first if len(names) == 2 and names[0] is not None and names[0] == names[1] else images
        if source not in self._batches:
            stem = "rows.batch" if source is first else f"{images.name}.batch"
            self._batches[source] = self._first_length(source, stem)
        return self._batches[source]

    def _first_length(self, value: ir.Value, name: str) -> ir.Value:
        if self._opset >= _SHAPE_OF_AXES:
            return self.add("Shape", [value], name, {"start": 0, "end": 1})
        shape = self.add("Shape", [value], f"{name}.shape")
        return self.add("Gather", [shape, self.constant(np.zeros(1, dtype=np.int64), f"{name}.axis")], name, {"axis": 0})

    def concat(self, parts: Sequence[ir.Value], name: str) -> ir.Value:
        """Rows behind one another; what there is if it is one tensor."""
        return parts[0] if len(parts) == 1 else self.add("Concat", parts, name, {"axis": _ROW_AXIS})

    def from_images(self, value: ir.Value, count: int, name: str) -> ir.Value:
        """Images (batch, channels, height, width) as rows in memory order."""
        channels_last = self.add("Transpose", [value], f"{name}.channels_last", {"perm": [0, 2, 3, 1]})
        assert value.shape is not None
        return self.reshape(channels_last, [0, count, -1], f"{name}.rows")

    def to_images(self, rows: ir.Value, size: tuple[int, int], name: str) -> ir.Value:
        """Rows in memory order, no others, as images."""
        images = self.reshape(rows, [0, *size, -1], f"{name}.channels_last")
        return self.add("Transpose", [images], f"{name}.images", {"perm": [0, 3, 1, 2]})
