"""Constants of a graph: new ones under names that nobody has, and what becomes of old ones."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

__all__ = ["Names", "add_constant", "constant_of", "forget_constant", "set_constant"]


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


def constant_of(value: ir.Value | None) -> ir.TensorProtocol | None:
    """What a constant holds; None for what is computed, or left out."""
    return None if value is None else ir.convenience.get_const_tensor(value)


def set_constant(value: ir.Value | None, array: npt.NDArray[np.int64]) -> None:
    """Give an initializer that `add_constant` added, and that one operator reads, another content of the same length."""
    assert value is not None and value.is_initializer(), "only our own constants are changed"
    value.const_value = ir.Tensor(array, name=value.name)


def forget_constant(graph: ir.Graph, value: ir.Value) -> None:
    """Remove a constant that nobody reads any more."""
    if value.uses() or value.is_graph_output() or value.is_graph_input():
        return
    producer = value.producer()
    if producer is not None:
        graph.remove(producer, safe=True)
    elif value.name is not None:
        graph.initializers.pop(value.name, None)
