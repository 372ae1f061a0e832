"""Tensors of a rewritten file that hold how many samples there are, and numbers of rows that follow from it."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.model import Node
from masksparse_deploy.rewrite.trace import Trace

__all__ = ["Batches"]

Indices = npt.NDArray[np.int64]


class Batches:
    """What is known of such tensors, read in the file's order; the batch is that of images of the sparse file."""

    def __init__(self, trace: Trace) -> None:
        self._trace = trace
        # those that hold all lengths of images
        self._whole_shapes: set[str] = set()
        # the batch, and behind it these numbers, int64 (1 + numbers,)
        self._shapes: dict[str, tuple[int, ...]] = {}
        # the batch times this number, one number
        self._multiples: dict[str, int] = {}
        # 0, and this number times each further sample, int64 (batch,) or (batch, 1, 1)
        self._starts: dict[str, int] = {}
        self._columns: dict[str, int] = {}
        # int64 (batch, count, 1): these numbers of rows of every sample, where it has so many rows
        self._rows: dict[str, tuple[Indices, int]] = {}

    def read(self, node: Node) -> bool:
        """Whether an operator gives one of these tensors."""
        reader = _READERS.get(node.op)
        return reader is not None and reader(self, node, node.outputs[0])

    def shape_behind(self, name: str) -> tuple[int, ...] | None:
        """The numbers behind the batch in a shape; None if that is not what the tensor holds."""
        return self._shapes.get(name)

    def rows(self, name: str) -> tuple[Indices, int] | None:
        """Numbers of rows of a sample, int64 (count,), that the tensor holds for all samples, and how many rows there are."""
        return self._rows.get(name)

    def _numbers(self, node: Node, index: int = 1) -> npt.NDArray[Any] | None:
        array = self._trace.constant(node.inputs[index]) if len(node.inputs) > index else None
        return array if array is not None and array.dtype == np.int64 else None

    def _single(self, node: Node, index: int) -> int | None:
        numbers = self._numbers(node, index)
        return int(numbers) if numbers is not None and numbers.ndim == 0 else None

    def _shape(self, node: Node, name: str) -> bool:
        held = self._trace.read(node.inputs[0])
        is_image = held is not None and held.is_whole and held.tensor == node.inputs[0]
        if is_image and (node.attributes.get("start", 0), node.attributes.get("end")) == (0, 1):
            self._shapes[name] = ()
        elif is_image and not node.attributes:
            self._whole_shapes.add(name)
        return name in self._shapes or name in self._whole_shapes

    def _gather(self, node: Node, name: str) -> bool:
        numbers = self._numbers(node)
        if node.inputs[0] not in self._whole_shapes or numbers is None or numbers.tolist() != [0] or _axis(node) != 0:
            return False
        self._shapes[name] = ()
        return True

    def _concat(self, node: Node, name: str) -> bool:
        numbers = self._numbers(node)
        if self._shapes.get(node.inputs[0]) != () or len(node.inputs) != 2 or _axis(node) != 0:
            return False
        if numbers is None or numbers.ndim != 1:
            return False
        self._shapes[name] = tuple(numbers.tolist())
        return True

    def _squeeze(self, node: Node, name: str) -> bool:
        if self._shapes.get(node.inputs[0]) != () or len(node.inputs) > 1 or node.attributes:
            return False
        self._multiples[name] = 1
        return True

    def _mul(self, node: Node, name: str) -> bool:
        factor, count = self._multiples.get(node.inputs[0]), self._single(node, 1)
        if factor is None or count is None:
            return False
        self._multiples[name] = factor * count
        return True

    def _range(self, node: Node, name: str) -> bool:
        """From 0 in steps of what the batch was multiplied by: one for each sample."""
        step = self._single(node, 2)
        if self._single(node, 0) != 0 or step is None or step < 1 or self._multiples.get(node.inputs[1]) != step:
            return False
        self._starts[name] = step
        return True

    def _reshape(self, node: Node, name: str) -> bool:
        step, shape = self._starts.get(node.inputs[0]), self._numbers(node)
        if step is None or shape is None or shape.tolist() != [-1, 1, 1]:
            return False
        self._columns[name] = step
        return True

    def _add(self, node: Node, name: str) -> bool:
        numbers, step = self._numbers(node, 0), self._columns.get(node.inputs[1])
        if numbers is None or step is None or numbers.ndim != 3 or numbers.shape[0] != 1 or numbers.shape[2] != 1:
            return False
        self._rows[name] = numbers.reshape(-1), step
        return True


def _axis(node: Node) -> int:
    return int(node.attributes.get("axis", 0))


_READERS: Mapping[str, Callable[[Batches, Node, str], bool]] = {
    "Add": Batches._add,
    "Concat": Batches._concat,
    "Gather": Batches._gather,
    "Mul": Batches._mul,
    "Range": Batches._range,
    "Reshape": Batches._reshape,
    "Shape": Batches._shape,
    "Squeeze": Batches._squeeze,
}
