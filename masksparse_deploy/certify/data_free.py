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
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.normalization import NORMALIZATIONS

__all__ = ["data_free_bound"]

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


def data_free_bound(pair: Pair, *, radius: float, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """A bound of ||f(x) - f~(x)|| for all inputs x with ||x|| <= `radius`.

    Two numbers are carried for every tensor: r >= ||x_l|| in the dense network, and e >= ||x_l - x~_l||.
    r <- Lip(f) r + ||f(0)||, and e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)||. A third, of the largest element in either
    network, serves products of two tensors.

    Args:
        pair: the two graphs, with one output.
        radius: of the ball of inputs, l2.
        shapes: of all variable tensors, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: an operator without a rule.
    """
    variables = variable_tensors(pair.dense)
    fused = fused_in_both(pair)
    interior = frozenset(name for entry in fused.values() for name in entry.interior)
    (source,) = pair.dense.inputs
    (output,) = pair.dense.outputs
    balls = {source: _Ball(radius=radius, bound=0.0, peak=radius)}
    for dense, sparse in zip(pair.dense.nodes, pair.sparse.nodes, strict=True):
        name = dense.outputs[0]
        if name not in variables or name in interior:
            continue
        inputs = [] if name in fused else [balls[key] for key in dense.inputs if key in variables]
        if name in fused:
            activation, ball = fused[name], balls[fused[name].source]
            rule = activation.rule(math.prod(shapes[name]))
            offset = (activation.origin + activation.jump) * math.sqrt(math.prod(shapes[name]))
            found = _Ball(
                radius=activation.slope * ball.radius + offset, bound=float(rule.combine([ball.bound])), peak=math.inf
            )
        elif dense.op == "Mul" and is_local(dense, variables):
            found = _product(inputs, [shapes[key] for key in dense.inputs], shapes[name])
        else:
            found = _through(dense, sparse, pair, inputs, variables, shapes, norms)
        found = replace(found, radius=found.radius * ROUNDING, bound=found.bound * ROUNDING)
        peak = min(_peak(dense, pair, inputs), found.peak, found.sparse_radius)
        balls[name] = replace(found, peak=peak)
    return balls[output].bound


def _through(
    dense: Node,
    sparse: Node,
    pair: Pair,
    inputs: list[_Ball],
    variables: frozenset[str],
    shapes: Mapping[str, tuple[int, ...]],
    norms: NormCache,
) -> _Ball:
    """An operator with a Lipschitz constant."""
    origin = at_zero(dense, pair.dense, shapes)
    bound = lipschitz_rule(sparse, pair.sparse, variables, shapes, norms).combine([ball.bound for ball in inputs])
    if pair.differs(dense):
        change = origin - at_zero(sparse, pair.sparse, shapes)
        bound += change_factor(dense, pair, shapes, norms) * inputs[0].radius + float(np.linalg.norm(change))
    reach = lipschitz_rule(dense, pair.dense, variables, shapes, norms)
    radius = reach.combine([ball.radius for ball in inputs]) + float(np.linalg.norm(origin))
    if dense.op in NORMALIZATIONS:  # each element of a group of d is at most sqrt(d) before it is scaled, their norm as well
        scale = float(np.abs(pair.dense.constants[dense.inputs[1]].astype(np.float64)).max())
        radius = min(radius, scale * math.sqrt(math.prod(shapes[dense.outputs[0]])) + float(np.linalg.norm(origin)))
    return _Ball(radius=radius, bound=bound, peak=math.inf)


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
