"""New constants in a graph, under names that nobody has."""

from typing import Any

import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Names", "add_constant"]


class Names:
    """Names of a graph's nodes and tensors, those in bodies included; `unused` gives further ones."""

    def __init__(self, graph: ir.Graph) -> None:
        nodes = list(graph.all_nodes())
        values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
        values += [*graph.inputs, *graph.initializers.values()]
        self._taken = {*(node.name for node in nodes), *(value.name for value in values)}

    def unused(self, name: str) -> str:
        """`name`, with underscores behind it if it is taken."""
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def add_constant(
    graph: ir.Graph, names: Names, name: str, array: npt.NDArray[Any], dtype: ir.DataType | None = None
) -> ir.Value:
    """Add an initializer with the content `array`; `dtype` where NumPy's does not tell, as for bfloat16."""
    name = names.unused(name)
    tensor = ir.Tensor(array, dtype=dtype, name=name)
    value = ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value
