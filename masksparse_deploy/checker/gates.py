"""Products of a tensor with a function of itself, which exporters write for SiLU, Hardswish, GELU, Mish and Softsign."""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from masksparse_deploy.checker.activations import GELU, MISH, SILU, hard_gate_slope
from masksparse_deploy.checker.network import Network, attributes_of

__all__ = ["Gate", "Gates"]

# Operators on one tensor, element by element, that a gate may consist of, beside sums and products with constants.
_ELEMENTWISE = ("Cast", "Clip", "Erf", "HardSigmoid", "Identity", "Neg", "Pow", "Sigmoid", "Softplus", "Tanh")


@dataclass(frozen=True, kw_only=True)
class Gate:
    """A product that is a function of each element of one tensor; `slope` is None where that function is not known."""

    source: str
    slope: float | None


@dataclass(eq=False)
class Gates:
    """Finds such products in a network.

    Attributes:
        network: the network.
        changed: outputs of nodes that read other constants in the other file; what they compute is no such function.
    """

    network: Network
    changed: frozenset[str]
    _producers: dict[str, onnx.NodeProto] = field(init=False)

    def __post_init__(self) -> None:
        self._producers = {node.output[0]: node for node in self.network.nodes if not node.domain}

    def find(self, node: onnx.NodeProto) -> Gate | None:
        """The function that a product or quotient of two variable tensors is; None if these are independent of each other."""
        left, right = node.input
        if node.op_type == "Div":
            return Gate(source=left, slope=1.0 if self._is_one_plus_size(right, left) else None)
        for name, gate in ((left, right), (right, left)):
            scale, x = self._base(name)
            slope = self._slope(x, gate)
            if slope is not None:
                return Gate(source=x, slope=abs(scale) * slope)
        common = set(self._ancestors(left)) & set(self._ancestors(right))
        return Gate(source=left, slope=None) if common else None

    def _slope(self, x: str, gate: str) -> float | None:
        """Of the product of x and a multiple of a gate."""
        scale, name = self._base(gate)
        node = self._producers.get(name)
        if node is None or self.changed & {gate, name}:
            return None
        if node.op_type == "Sigmoid" and self._base(node.input[0])[1] == x:  # x sigmoid(a x) is swish(a x) / a, whatever a
            return abs(scale) * SILU
        if node.op_type == "HardSigmoid" and node.input[0] == x:
            alpha, beta = (float(attributes_of(node).get(key, value)) for key, value in (("alpha", 0.2), ("beta", 0.5)))
            return abs(scale) * hard_gate_slope(alpha, beta) if alpha > 0 else None
        if node.op_type == "Clip":
            return self._clipped(node, x, scale)
        if node.op_type == "Tanh":
            inner = self._producers.get(node.input[0])
            return abs(scale) * MISH if inner is not None and inner.op_type == "Softplus" and inner.input[0] == x else None
        if node.op_type == "Add" and 1.0 in (self._number(key) for key in node.input):
            inner = next((self._producers.get(key) for key in node.input if self._number(key) is None), None)
            is_erf = inner is not None and inner.op_type == "Erf" and self._base(inner.input[0])[1] == x
            return abs(scale) * 2 * GELU if is_erf else None  # x (1 + erf(a x)) is twice gelu, stretched
        return None

    def _clipped(self, node: onnx.NodeProto, x: str, scale: float) -> float | None:
        """Of a multiple of x clip(x + b, 0, high)."""
        low, high = (self._number(name) if name else None for name in (*node.input[1:], "", "")[:2])
        inner = self._producers.get(node.input[0])
        if low != 0 or not high or high < 0 or inner is None or inner.op_type != "Add" or inner.output[0] in self.changed:
            return None
        offset = next((self._number(name) for name in inner.input if name != x), None)
        if x not in inner.input or offset is None:
            return None
        return abs(scale) * high * hard_gate_slope(1 / high, offset / high)

    def _is_one_plus_size(self, name: str, x: str) -> bool:
        """Whether a tensor is 1 + |x|, by which Softsign divides."""
        node = self._producers.get(name)
        if (
            node is None
            or node.op_type != "Add"
            or name in self.changed
            or 1.0 not in (self._number(key) for key in node.input)
        ):
            return False
        inner = next((self._producers.get(key) for key in node.input if self._number(key) is None), None)
        return inner is not None and inner.op_type == "Abs" and inner.input[0] == x

    def _base(self, name: str) -> tuple[float, str]:
        """(number, tensor) whose product `name` is, as far back as that goes."""
        factor = 1.0
        while (node := self._producers.get(name)) is not None and node.op_type in ("Mul", "Div") and name not in self.changed:
            numbers = [self._number(key) for key in node.input]
            if numbers[1]:
                factor, name = factor * (numbers[1] if node.op_type == "Mul" else 1 / numbers[1]), node.input[0]
            elif numbers[0] is not None and node.op_type == "Mul":
                factor, name = factor * numbers[0], node.input[1]
            else:
                break
        return factor, name

    def _ancestors(self, name: str) -> Iterator[str]:
        """The tensor and those that it is computed from element by element."""
        yield name
        node = self._producers.get(name)
        if node is None:
            return
        variable = [key for key in node.input if key and key not in self.network.constants]
        binary = node.op_type in ("Add", "Div", "Mul", "Sub") and len(variable) == 1
        if node.op_type in _ELEMENTWISE or binary:
            yield from self._ancestors(variable[0])

    def _number(self, name: str) -> float | None:
        value = self.network.constants.get(name)
        return float(np.asarray(value, np.float64).reshape(())) if value is not None and value.size == 1 else None
