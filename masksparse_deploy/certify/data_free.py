"""The recursion without samples: one bound for every input whose norm is at most a given radius."""

from collections.abc import Mapping

import numpy as np

from masksparse_deploy.certify.changes import at_zero, change_factor
from masksparse_deploy.certify.lipschitz import lipschitz_rule, variable_tensors
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.recursion import ROUNDING

__all__ = ["data_free_bound"]


def data_free_bound(pair: Pair, *, radius: float, shapes: Mapping[str, tuple[int, ...]], norms: NormCache) -> float:
    """A bound of ||f(x) - f~(x)|| for all inputs x with ||x|| <= `radius`.

    Two numbers are carried for every tensor: r >= ||x_l|| in the dense network, and e >= ||x_l - x~_l||.
    r <- Lip(f) r + ||f(0)||, and e <- Lip(f~) e + Lip(f - f~) r + ||(f - f~)(0)||.

    Args:
        pair: the two graphs, with one output.
        radius: of the ball of inputs, l2.
        shapes: of all variable tensors, without the batch.
        norms: operator norms known so far.

    Raises:
        NoRuleError: an operator without a rule.
    """
    variables = variable_tensors(pair.dense)
    (source,) = pair.dense.inputs
    (output,) = pair.dense.outputs
    radii, bounds = {source: radius}, {source: 0.0}
    for dense, sparse in zip(pair.dense.nodes, pair.sparse.nodes, strict=True):
        name = dense.outputs[0]
        if name not in variables:
            continue
        inputs = [key for key in dense.inputs if key in variables]
        origin = at_zero(dense, pair.dense, shapes)
        reach = lipschitz_rule(dense, pair.dense, variables, shapes, norms)
        bound = lipschitz_rule(sparse, pair.sparse, variables, shapes, norms).combine([bounds[key] for key in inputs])
        if pair.differs(dense):
            change = origin - at_zero(sparse, pair.sparse, shapes)
            bound += change_factor(dense, pair, shapes, norms) * radii[inputs[0]] + float(np.linalg.norm(change))
        radii[name] = (reach.combine([radii[key] for key in inputs]) + float(np.linalg.norm(origin))) * ROUNDING
        bounds[name] = bound * ROUNDING
    return bounds[output]
