"""Activations that exporters write as several operators, found again so that they are bounded as one.

x * sigmoid(x) as a product of two tensors has a bound that grows with x; as SiLU it has the slope 1.0999.
"""

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.activations import GELU, MISH, SILU, gate_slope
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.rule import Rule
from masksparse_deploy.graph.model import Graph, Node

__all__ = ["Fused", "fused_activations", "fused_in_both"]

Array = npt.NDArray[Any]

# The coefficients of GELU by tanh as exporters round them to float32. Where both are off by a relative 1e-6, so is the slope by
# at most as much and a few times that; 1.1291 is 1e-4 above the exact one's.
_TANH_GELU = (math.sqrt(2 / math.pi), 0.044715)
_TANH_GELU_SLOPE = 1.1291
# A Sum may have more terms than an Add.
_TWO = 2


@dataclass(frozen=True, kw_only=True)
class Fused:
    """An activation of one tensor, computed by several operators.

    Attributes:
        source: the tensor it is a function of.
        slope: |f(x) - f(y)| <= slope |x - y| for every element.
        jump: and where x and y differ, this much more: the height of a step.
        origin: f(0).
        interior: outputs of its operators that nothing else reads.
        nodes: outputs of all its operators.
    """

    source: str
    slope: float
    jump: float = 0.0
    origin: float = 0.0
    interior: frozenset[str] = frozenset()
    nodes: frozenset[str] = frozenset()

    def rule(self, element_count: int) -> Rule:
        """In l2, for a tensor of so many elements a sample."""
        return Rule(factors=(self.slope,), jump=self.jump * math.sqrt(element_count))

    def enlarge(self, distances: Array) -> Array:
        """The distances of the output's elements."""
        enlarged: Array = self.slope * distances
        return enlarged + self.jump * (distances > 0) if self.jump else enlarged


def fused_in_both(pair: Pair) -> dict[str, Fused]:
    """The activations that are the same function in both networks, by the name of their output."""
    changed = {node.outputs[0] for node in pair.dense.nodes if pair.differs(node)}
    return {name: fused for name, fused in fused_activations(pair.sparse).items() if not changed & fused.nodes}


def fused_activations(graph: Graph) -> dict[str, Fused]:
    """The activations in `graph`, by the name of their output."""
    matcher = _Matcher(graph)
    return {node.outputs[0]: found for node in graph.nodes if (found := matcher.match(node)) is not None}


class _Matcher:
    """Follows operators backwards from a product; the operators of a match are noted on the way."""

    def __init__(self, graph: Graph) -> None:
        self._constants = graph.constants
        self._producers: Mapping[str, Node] = {node.outputs[0]: node for node in graph.nodes if not node.domain}
        self._reads = Counter(name for node in graph.nodes for name in set(node.inputs))
        self._reads.update(graph.outputs)
        self._seen: dict[str, Node] = {}

    def match(self, node: Node) -> Fused | None:
        """The activation that ends with `node`, if there is one."""
        self._seen = {}
        if node.op in ("Mul", "Div"):
            found = self._softsign(node) or self._gated(node)
        else:
            found = self._softplus(node) if node.op == "Where" else None
        if found is None:
            return None
        output = node.outputs[0]
        inside = Counter(name for seen in self._seen.values() for name in set(seen.inputs))
        interior = frozenset(name for name in self._seen if name != output and inside[name] == self._reads[name])
        return Fused(
            source=found.source,
            slope=found.slope,
            jump=found.jump,
            origin=found.origin,
            interior=interior,
            nodes=frozenset(self._seen),
        )

    def _producer(self, name: str, *ops: str) -> Node | None:
        """The operator that computes a tensor if it is one of `ops`, noted as part of the match."""
        node = self._producers.get(name)
        if node is None or node.op not in ops:
            return None
        self._seen[name] = node
        return node

    def _number(self, name: str) -> float | None:
        value = self._constants.get(name)
        return float(np.asarray(value, dtype=np.float64).reshape(())) if value is not None and value.size == 1 else None

    def _multiples(self, name: str) -> Iterator[tuple[float, str]]:
        """(number, tensor) where the tensor `name` is their product, beginning with itself."""
        factor = 1.0
        while True:
            yield factor, name
            node = self._producers.get(name)
            if node is None or node.op not in ("Mul", "Div"):
                return
            left, right = (self._number(key) for key in node.inputs)
            if node.op == "Mul" and left is not None:
                factor, following = factor * left, node.inputs[1]
            elif right is not None and right != 0:
                factor, following = factor * (right if node.op == "Mul" else 1 / right), node.inputs[0]
            else:
                return
            self._seen[name] = node
            name = following

    def _multiple_of(self, name: str, x: str) -> float | None:
        """The number by which x was multiplied to give `name`."""
        return next((factor for factor, found in self._multiples(name) if found == x), None)

    def _gated(self, node: Node) -> Fused | None:
        """A number times x times a gate that is a function of x."""
        scale, name = list(self._multiples(node.outputs[0]))[-1]
        core = self._producer(name, "Mul")
        if core is None or any(self._number(key) is not None for key in core.inputs):
            return None
        before = dict(self._seen)
        for left, right in (core.inputs, reversed(core.inputs)):
            self._seen = dict(before)
            gate_scale, gate = list(self._multiples(right))[-1]
            after = dict(self._seen)
            for own_scale, x in list(self._multiples(left)):
                self._seen = dict(after)
                self._multiple_of(left, x)
                slope = self._gate(gate, x)
                if slope is not None:
                    return Fused(source=x, slope=abs(scale * gate_scale * own_scale) * slope)
        return None

    def _gate(self, gate: str, x: str) -> float | None:
        """The largest slope of x times the gate."""
        node = self._producer(gate, "Sigmoid", "HardSigmoid", "Clip", "Tanh", "Add", "Sum")
        if node is None:
            return None
        if node.op == "Sigmoid":  # x sigmoid(a x) = swish(a x) / a, whatever a
            return SILU if self._multiple_of(node.inputs[0], x) is not None else None
        if node.op == "HardSigmoid":
            alpha, beta = float(node.attributes.get("alpha", 0.2)), float(node.attributes.get("beta", 0.5))
            # x clip(a x + b, 0, 1) = a x clip(x + b / a, 0, 1 / a)
            return alpha * gate_slope(1 / alpha, beta / alpha) if node.inputs[0] == x and alpha > 0 else None
        if node.op == "Clip":
            return self._clipped(node, x)
        if node.op == "Tanh":
            inner = self._producer(node.inputs[0], "Softplus")
            return MISH if inner is not None and inner.inputs[0] == x else None
        return self._one_plus(node, x)

    def _clipped(self, node: Node, x: str) -> float | None:
        """The product x clip(x + b, 0, high)."""
        low, high = (self._number(name) if name else None for name in (*node.inputs[1:], "", "")[:2])
        if low != 0 or high is None:
            return None
        if node.inputs[0] == x:
            return gate_slope(high, 0.0)
        offsets = [offset for source, offset in self._sums(node.inputs[0]) if source == x]
        return gate_slope(high, offsets[0]) if offsets else None

    def _one_plus(self, node: Node, x: str) -> float | None:
        """The product x (1 + erf(a x)), or by tanh."""
        terms = [term for term, number in self._sums(node.outputs[0]) if number == 1]
        inner = self._producer(terms[0], "Erf", "Tanh") if terms else None
        if inner is None:
            return None
        if inner.op == "Erf":  # the slope does not depend on a either
            return 2 * GELU if self._multiple_of(inner.inputs[0], x) is not None else None
        scale, name = list(self._multiples(inner.inputs[0]))[-1]
        is_gelu = math.isclose(scale, _TANH_GELU[0], rel_tol=1e-6) and self._is_cubic(name, x)
        return 2 * _TANH_GELU_SLOPE if is_gelu else None

    def _is_cubic(self, name: str, x: str) -> bool:
        """Whether a tensor is x + 0.044715 x^3."""
        node = self._producer(name, "Add", "Sum")
        if node is None or x not in node.inputs or len(node.inputs) != _TWO:
            return False
        scale, power = list(self._multiples(node.inputs[1 - node.inputs.index(x)]))[-1]
        return math.isclose(scale, _TANH_GELU[1], rel_tol=1e-6) and self._power(power, x) == 3

    def _power(self, name: str, x: str) -> float | None:
        """The exponent with which a tensor is a power of x."""
        if name == x:
            return 1
        node = self._producer(name, "Mul", "Pow")
        if node is None:
            return None
        if node.op == "Pow":
            return self._number(node.inputs[1]) if node.inputs[0] == x else None
        powers = [self._power(factor, x) for factor in node.inputs]
        return None if None in powers else sum(power for power in powers if power is not None)

    def _sums(self, name: str) -> Iterator[tuple[str, float]]:
        """(tensor, number) where a tensor is their sum."""
        node = self._producer(name, "Add", "Sum")
        if node is not None and len(node.inputs) == _TWO:
            for term, other in (node.inputs, reversed(node.inputs)):
                number = self._number(other)
                if number is not None:
                    yield term, number

    def _softsign(self, node: Node) -> Fused | None:
        """The quotient x / (1 + |x|), as PyTorch writes Softsign."""
        if node.op != "Div":
            return None
        self._seen[node.outputs[0]] = node
        x = node.inputs[0]
        for term, number in self._sums(node.inputs[1]):
            size = self._producer(term, "Abs")
            if number == 1 and size is not None and size.inputs[0] == x:
                return Fused(source=x, slope=1.0)
        self._seen = {}
        return None

    def _softplus(self, node: Node) -> Fused | None:
        """Softplus below a threshold t and x above it, as PyTorch writes it: with a step of log(1 + exp(-t)) at t."""
        self._seen[node.outputs[0]] = node
        above, x, below = node.inputs
        greater, soft = self._producer(above, "Greater"), self._producer(below, "Softplus")
        if greater is None or soft is None or greater.inputs[0] != x or soft.inputs[0] != x:
            return None
        threshold = self._number(greater.inputs[1])
        if threshold is None or threshold < 0:
            return None
        return Fused(source=x, slope=1.0, jump=math.log1p(math.exp(-threshold)), origin=math.log(2))
