"""Evaluating a network node by node in float64, whatever the precision of its file."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.network import Network, is_floating
from masksparse_deploy.checker.operators import apply
from masksparse_deploy.checker.rules import NoRuleError

__all__ = ["Walk", "apply_exactly"]

Array = npt.NDArray[Any]


def apply_exactly(node: onnx.NodeProto, inputs: Sequence[Array | None], *, opset: int) -> Array:
    """The first output of `node` in float64: a Cast from one real type to another rounds nothing.

    Raises:
        NoRuleError: the reference implementation cannot compute the operator as it is used.
    """
    exact = [array.astype(np.float64) if array is not None and is_floating(array) else array for array in inputs]
    if node.op_type == "Cast" and exact[0] is not None and exact[0].dtype == np.float64:
        return exact[0]
    if node.op_type == "Resize":  # the reference implementation differs from runtimes where lengths are fractions
        raise NoRuleError("Resize")
    try:
        return apply(node, exact, opset=opset)
    except Exception as error:  # the reference implementation raises unrelated types
        raise NoRuleError(f"{node.op_type} ({type(error).__name__} where it is computed)") from error


class Walk:
    """One pass through a network that keeps a tensor only as long as a later node reads it."""

    def __init__(self, network: Network, images: Array) -> None:
        """`images` are (count, ...) as the network takes them."""
        self._network = network
        self._readers = Counter(name for node in network.nodes for name in node.input)
        self._readers.update(network.outputs)
        self.values: dict[str, Array] = {network.inputs[0].name: images.astype(np.float64)}

    def inputs(self, node: onnx.NodeProto) -> list[Array | None]:
        """The arrays of a node's inputs, None for one left out."""
        return [self._value(name) if name else None for name in node.input]

    def step(self, node: onnx.NodeProto) -> Array:
        """Compute the next node; drops what no later one reads."""
        result = apply_exactly(node, self.inputs(node), opset=self._network.opset)
        if node.output[0] in self._network.masks:
            result = self._network.masks[node.output[0]].apply(result)
        self.values[node.output[0]] = result
        for name in node.input:
            self._readers[name] -= 1
            if self._readers[name] == 0:
                self.values.pop(name, None)
        return result

    def _value(self, name: str) -> Array:
        constants: Mapping[str, Array] = self._network.constants
        return self.values[name] if name in self.values else constants[name]
