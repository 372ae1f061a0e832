"""The recursion without samples: one bound for every input whose norm is at most a given radius."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from masksparse_deploy.certify.changes import at_zero, change_factor
from masksparse_deploy.certify.fused import fused_in_both
from masksparse_deploy.certify.lipschitz import lipschitz_rule, variable_tensors
from masksparse_deploy.certify.local import is_local
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.recursion import ROUNDING
from masksparse_deploy.certify.rule import NoRuleError, Rule
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.normalization import NORMALIZATIONS

__all__ = ["Allowance", "DataFree", "data_free_bound"]

# Largest absolute value of what an operator gives, whatever it is given.
_PEAKS = {"Erf": 1.0, "HardSigmoid": 1.0, "Sigmoid": 1.0, "Softmax": 1.0, "Softsign": 1.0, "Tanh": 1.0}
# Operators whose outputs are elements of their input, or averages of some.
_KEEPING = (
    *(
        "AveragePool",
        "Dropout",
        "Flatten",
        "GlobalAveragePool",
        "GlobalMaxPool",
        "Identity",
        "MaxPool",
        "ReduceMax",
        "ReduceMean",
    ),
    *("Relu", "Reshape", "Resize", "Slice", "Squeeze", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True, kw_only=True)
class _Ball:
    """What is known of one tensor for every input in the ball.

    Attributes:
        radius: r >= ||x|| in the dense network.
        bound: e >= ||x - x~||.
        peak: p >= max |x|, p >= max |x~|.
    """

    radius: float
    bound: float
    peak: float

    @property
    def sparse_radius(self) -> float:
        """Of ||x~||, by the triangle inequality."""
        return self.radius + self.bound


@dataclass(frozen=True, kw_only=True)
class Allowance:
    """How much larger the constants of one layer may be than they are, as after an update of its weights.

    Attributes:
        weight: added to the Lipschitz constant of the layer, in either network.
        offset: added to ||f(0)||, in either network.
        difference: added to that of f - f~.
        offset_difference: added to ||(f - f~)(0)||.
    """

    weight: float = 0.0
    offset: float = 0.0
    difference: float = 0.0
    offset_difference: float = 0.0


@dataclass(frozen=True, kw_only=True)
class _Constants:
    """What an operator with Lipschitz constants does: of f~ and f, ||f(0)||, of f - f~, and the largest ||f(x)|| there is."""

    sparse: Rule
    dense: Rule
    origin: float
    change: float
    origin_change: float
    ceiling: float


def data_free_bound(pair: Pair, *, radius: float, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """A bound of ||f(x) - f~(x)|| for all inputs x with ||x|| <= `radius`; arguments and errors are those of `DataFree`."""
    return DataFree(pair, shapes=shapes, norms=norms).bound(radius)


class DataFree:
    """The recursion for one pair of graphs, its constants found once.

    Two numbers are carried for every tensor: r >= ||x_l|| in the dense network, and e >= ||x_l - x~_l||.
    r <- Lip(f) r + ||f(0)||, and e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)||. A third, of the largest element in either
    network, serves products of two tensors.

    Args:
        pair: the two graphs, with one output.
        shapes: of all variable tensors, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: an operator without a rule.
    """

    def __init__(self, pair: Pair, *, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> None:
        self._pair = pair
        self._shapes = shapes
        self._variables = variable_tensors(pair.dense)
        self._fused = fused_in_both(pair)
        interior = {name for entry in self._fused.values() for name in entry.interior}
        self._nodes = [
            (dense, sparse)
            for dense, sparse in zip(pair.dense.nodes, pair.sparse.nodes, strict=True)
            if dense.outputs[0] in self._variables and dense.outputs[0] not in interior
        ]
        self._constants = {
            dense.outputs[0]: _constants(dense, sparse, pair, self._variables, shapes, norms)
            for dense, sparse in self._nodes
            if dense.outputs[0] not in self._fused and not self._is_product(dense)
        }

    def bound(self, radius: float, allowances: Mapping[str, Allowance] | None = None) -> float:
        """A bound of ||f(x) - f~(x)|| for all inputs x with ||x|| <= `radius`.

        Args:
            radius: of the ball of inputs, l2.
            allowances: for layers whose constants may be larger, by the name of the layer's output; the bound grows with each.
        """
        allowances = allowances or {}
        (source,) = self._pair.dense.inputs
        (output,) = self._pair.dense.outputs
        balls = {source: _Ball(radius=radius, bound=0.0, peak=radius)}
        for dense, _ in self._nodes:
            name = dense.outputs[0]
            inputs = [] if name in self._fused else [balls[key] for key in dense.inputs if key in self._variables]
            if name in self._fused:
                found = self._activation(name, balls[self._fused[name].source])
            elif name in self._constants:
                found = _through(self._constants[name], inputs, allowances.get(name, _NOTHING))
            else:
                found = _product(inputs, [self._shapes[key] for key in dense.inputs], self._shapes[name])
            found = replace(found, radius=found.radius * ROUNDING, bound=found.bound * ROUNDING)
            peak = min(_peak(dense, self._pair, inputs), found.peak, found.sparse_radius)
            balls[name] = replace(found, peak=peak)
        return balls[output].bound

    def _is_product(self, node: Node) -> bool:
        return node.op == "Mul" and is_local(node, self._variables)

    def _activation(self, name: str, ball: _Ball) -> _Ball:
        activation, count = self._fused[name], math.prod(self._shapes[name])
        offset = (activation.origin + activation.jump) * math.sqrt(count)
        bound = float(activation.rule(count).combine([ball.bound]))
        return _Ball(radius=activation.slope * ball.radius + offset, bound=bound, peak=math.inf)


_NOTHING = Allowance()


def _constants(
    dense: Node,
    sparse: Node,
    pair: Pair,
    variables: frozenset[str],
    shapes: Mapping[str, tuple[int, ...]],
    norms: NormCache,
) -> _Constants:
    """Of an operator with a Lipschitz constant."""
    # first, so that what has none is not evaluated at zero
    reach = lipschitz_rule(sparse, pair.sparse, variables, shapes, norms)
    offset = at_zero(dense, pair.dense, shapes, pair.dense_masks)
    origin = float(np.linalg.norm(offset))
    change = origin_change = 0.0
    if pair.differs(dense):
        origin_change = float(np.linalg.norm(offset - at_zero(sparse, pair.sparse, shapes, pair.sparse_masks)))
        change = change_factor(dense, pair, shapes, norms)
    ceiling = math.inf
    if dense.op in NORMALIZATIONS:  # each element of a group of d is at most sqrt(d) before it is scaled, their norm as well
        scale = float(np.abs(pair.dense.constants[dense.inputs[1]].astype(np.float64)).max())
        ceiling = scale * math.sqrt(math.prod(shapes[dense.outputs[0]])) + origin
    return _Constants(
        sparse=reach,
        dense=lipschitz_rule(dense, pair.dense, variables, shapes, norms),
        origin=origin,
        change=change,
        origin_change=origin_change,
        ceiling=ceiling,
    )


def _through(constants: _Constants, inputs: list[_Ball], allowed: Allowance) -> _Ball:
    """What an operator with a Lipschitz constant makes of its inputs; only layers, of one input, have an allowance."""
    bound = constants.sparse.combine([ball.bound for ball in inputs]) + allowed.weight * inputs[0].bound
    bound += (constants.change + allowed.difference) * inputs[0].radius
    bound += constants.origin_change + allowed.offset_difference
    radius = constants.dense.combine([ball.radius for ball in inputs]) + allowed.weight * inputs[0].radius
    radius += constants.origin + allowed.offset
    return _Ball(radius=min(radius, constants.ceiling), bound=bound, peak=math.inf)


def _product(inputs: list[_Ball], sources: list[tuple[int, ...]], result: tuple[int, ...]) -> _Ball:
    """The product rule, a b - a~ b~ = a (b - b~) + b~ (a - a~), with the largest elements and norms that are known."""
    if any(len(source) < len(result) for source in sources):
        raise NoRuleError("Mul across samples")
    a, b = inputs
    spread = [math.sqrt(math.prod(result) / math.prod(source)) for source in sources]
    # what one element of a is multiplied with: copies of one element of b, or elements of b that are all different
    with_a = min(b.peak * spread[0], b.sparse_radius * spread[1])
    with_b = min(a.peak * spread[1], a.sparse_radius * spread[0])
    return _Ball(
        radius=min(with_b * b.radius, with_a * a.radius),
        bound=with_b * b.bound + with_a * a.bound,
        peak=a.peak * b.peak,
    )


def _peak(node: Node, pair: Pair, inputs: list[_Ball]) -> float:
    """What the operator itself says about the largest element, in either network."""
    if node.op in _PEAKS:
        return _PEAKS[node.op]
    if node.op == "Clip":
        return max(_limit(node, graph) for graph in (pair.dense, pair.sparse))
    return max(ball.peak for ball in inputs) if node.op in _KEEPING else math.inf


def _limit(node: Node, graph: Graph) -> float:
    limits = [graph.constants.get(name) for name in node.inputs[1:] if name]
    if len(limits) < 2 or any(limit is None for limit in limits):
        return math.inf
    return max(float(np.abs(limit).max()) for limit in limits if limit is not None)
