"""The network recursions: how far the sparse network's tensors can be from the dense network's, sample by sample.

At a node with dense function f and sparse function f~, ||f(x) - f~(x~)|| <= Lip(f~) ||x - x~|| + ||f(x) - f~(x)||. Three
recursions are carried side by side, which differ in the last term and in what else they use; certificates call them

- measured norms: the last term is at most Lip(f - f~) ||x|| + ||(f - f~)(0)||, with ||x|| measured in the dense network;
- measured residuals: the last term is evaluated on the dense network's x;
- hybrid: so it is, and a bound of each element's distance is carried beside; at every tensor the smaller of the two counts.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.changes import at_zero, change_factor
from masksparse_deploy.certify.elementwise import enlarge
from masksparse_deploy.certify.fused import Fused, fused_in_both
from masksparse_deploy.certify.lipschitz import lipschitz_rule, variable_tensors
from masksparse_deploy.certify.local import is_local, local_rule
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.propagation import LastLayer, Propagation, joined
from masksparse_deploy.certify.rule import NoRuleError, Rule
from masksparse_deploy.core.artifacts.certificate import HYBRID, MEASURED_NORMS, MEASURED_RESIDUALS
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.graph.evaluate import Evaluation
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.nodes import apply_node

__all__ = ["ROUNDING", "propagate"]

Array = npt.NDArray[Any]

# Allowance for the rounding of the float64 evaluation, one factor a node. A sum of n terms is off by at most n 2^-53 of the
# sum of their absolute values, 1e-12 for n = 9,000; it would take a cancellation by a factor of 1,000 in all elements of a
# tensor at once to use the allowance up. Stated as an assumption of the certificate.
ROUNDING = 1 + 1e-9
# Samples propagated at a time, which bounds the memory.
_CHUNK = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class _Distance:
    """Bounds of the distance of one tensor in the two networks: l2 (count,) by claim, and of each element (count, ...)."""

    l2: dict[str, Array]
    elements: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class _Inputs:
    """The variable inputs of a node, by name; what they are in the two networks only where a local rule asks for it."""

    names: list[str]
    dense: list[Array]
    sparse: list[Array]


def propagate(pair: Pair, images: Array, norms: NormCache, *, progress: Progress) -> Propagation:
    """Run the recursions; both graphs must have one input that `images` (count, ...) fits, and one output.

    Raises:
        ArtifactError: a network gives NaN or infinite values for the images.
        AssertionError: a measured distance exceeds its bound, which means that this module is wrong.
    """
    parts = []
    for start in range(0, len(images), _CHUNK):
        progress("bounding the network's deviation", start, len(images))
        walk = _Walk(pair, images[start : start + _CHUNK], norms)
        with np.errstate(all="ignore"):  # what is not finite is refused where it comes up
            for dense_node, sparse_node in zip(pair.dense.nodes, pair.sparse.nodes, strict=True):
                walk.step(dense_node, sparse_node)
        parts.append(walk.result())
    progress("bounding the network's deviation", len(images), len(images))
    return joined(parts)


class _Walk:
    """One pass through both graphs in step, for one chunk of samples."""

    def __init__(self, pair: Pair, images: Array, norms: NormCache) -> None:
        self._pair = pair
        self._norms = norms
        self._variables = variable_tensors(pair.dense)
        self._fused = fused_in_both(pair)
        self._interior = frozenset(name for fused in self._fused.values() for name in fused.interior)
        self._sources = Counter(fused.source for fused in self._fused.values())
        (self._output,) = pair.dense.outputs
        ((name, shape),) = pair.dense.inputs.items()
        self._batch = shape[0]
        self._count = len(images)
        self._dense = Evaluation(pair.dense, images, keep=[self._output], masks=pair.dense_masks)
        self._sparse = Evaluation(pair.sparse, images, keep=[self._output], masks=pair.sparse_masks)
        equal = dict.fromkeys((MEASURED_NORMS, MEASURED_RESIDUALS, HYBRID), np.zeros(self._count))
        # None where a rule was missing; without the norms' recursion where only that one has none
        self._bounds: dict[str, _Distance | None] = {
            name: _Distance(l2=equal, elements=np.zeros(images.shape, dtype=np.float64))
        }
        self._shapes: dict[str, tuple[int, ...]] = {name: images.shape[1:]}
        self._gains: dict[str, Array] = {}
        self._missing: set[str] = set()
        self._missing_norms: set[str] = set()
        self._last: LastLayer | None = None

    def step(self, dense: Node, sparse: Node) -> None:
        """Compute one node in both networks, the difference its weights make, and the bounds of its output."""
        name = dense.outputs[0]
        is_variable = name in self._variables
        change = self._change(dense, sparse) if is_variable else None
        inputs = self._inputs(sparse)
        size = _row_norms(self._dense.values[inputs.names[0]]) if change is not None else np.zeros(0)
        result = self._dense.step(dense)
        other = self._sparse.step(sparse)
        for which, array in (("dense", result), ("sparse", other)):
            if is_variable and not np.isfinite(array).all():
                raise ArtifactError(
                    f"{dense.op} {dense.name!r} of the {which} network gives NaN or infinite values for the images, so that no "
                    "distance can be told; check the images and the model, and export it again"
                )
        if is_variable:
            self._shapes[name] = result.shape[1:]
            self._bounds[name] = None if name in self._interior else self._bound(dense, sparse, inputs, change, size, result)
        if name in self._fused:
            self._sources[self._fused[name].source] -= 1
        alive = self._dense.values
        self._bounds = {key: value for key, value in self._bounds.items() if key in alive or self._sources[key] > 0}

    def result(self) -> Propagation:
        """The bounds of the output, once all nodes are done."""
        final = self._bounds[self._output]
        return Propagation(
            bounds={} if final is None else final.l2,
            dense=self._dense.values[self._output],
            sparse=self._sparse.values[self._output],
            gains=self._gains,
            shapes=self._shapes,
            missing=tuple(sorted(self._missing)),
            missing_norms=tuple(sorted(self._missing_norms)),
            last_layer=self._last,
        )

    def _change(self, dense: Node, sparse: Node) -> Array | None:
        """f(x) - f~(x) on the dense network's x, (count, ...); None if the node reads the same constants in both files."""
        if not self._pair.differs(dense):
            return None
        x = [self._dense.values[name] if name else None for name in dense.inputs]
        other = [
            value if name in self._variables or not name else self._sparse.values[name]
            for name, value in zip(dense.inputs, x, strict=True)
        ]
        if dense.op not in ("Conv", "Gemm", "MatMul") or dense.inputs[0] not in self._variables:
            return apply_node(dense, x, batch=self._batch) - apply_node(sparse, other, batch=self._batch)
        # linear in weight and bias: their differences, which are almost exact, avoid the cancellation
        weight, *biases = (None if a is None or b is None else a - b for a, b in zip(x[1:], other[1:], strict=True))
        source = self._dense.values[dense.inputs[0]]
        linear = apply_node(dense, [source, weight], batch=self._batch)
        positions = self._pair.positions(dense)
        if positions is not None:
            alone = (apply_node(dense, [source, inputs[1]], batch=self._batch) for inputs in (x, other))
            dense_linear, sparse_linear = alone
            linear = positions.select(linear, dense_linear, -sparse_linear, 0.0)
        size = _row_norms(source)
        self._gains[dense.name] = np.divide(_row_norms(linear), size, out=np.zeros_like(size), where=size > 0)
        if positions is not None:
            added = (0.0 if len(inputs) < 3 or inputs[2] is None else inputs[2] for inputs in (x, other))
            offsets = (offset[:, None, None] for offset in positions.offsets(*added))
            return np.asarray(linear + positions.select(*offsets))
        bias = biases[0] if biases else None
        return linear if bias is None or not bias.any() else apply_node(dense, [source, weight, bias], batch=self._batch)

    def _inputs(self, node: Node) -> _Inputs:
        """What the bounds of a node's output depend on, before its inputs are dropped."""
        names = [name for name in node.inputs if name in self._variables]
        local = is_local(node, self._variables) and node.outputs[0] not in self._fused
        return _Inputs(
            names=names,
            dense=[self._dense.values[name] for name in names] if local else [],
            sparse=[self._sparse.values[name] for name in names] if local else [],
        )

    def _bound(
        self, dense: Node, sparse: Node, inputs: _Inputs, change: Array | None, size: Array, result: Array
    ) -> _Distance | None:
        fused = self._fused.get(sparse.outputs[0])
        names = inputs.names if fused is None else [fused.source]
        known = [self._bounds[name] for name in names]
        distances = [distance for distance in known if distance is not None]
        try:
            if result.shape[:1] != (self._count,):
                raise NoRuleError(f"{sparse.op} across samples")
            # asked for even where an input has no bound, so that every operator without a rule is named
            rule = self._rule(sparse, fused, result)
            if len(distances) < len(known):
                return None
            rule, element = self._elements(sparse, fused, inputs, distances, rule, result)
        except NoRuleError as error:
            self._missing.add(str(error))
            return None
        if sparse.outputs[0] in self._pair.sparse_masks:  # what a masked position holds depends on no input
            element = element * self._pair.sparse_masks[sparse.outputs[0]].keep
        l2 = self._combined(rule, distances)
        if change is not None:
            element = element + np.abs(change)
            moved = _row_norms(change)
            l2[MEASURED_RESIDUALS] = l2[MEASURED_RESIDUALS] + moved
            l2[HYBRID] = l2[HYBRID] + moved
            self._add_norm_change(l2, dense, sparse, size)
        l2[HYBRID] = np.minimum(l2[HYBRID], _row_norms(element))
        l2 = {claim: bounds * ROUNDING for claim, bounds in l2.items()}
        element = np.minimum(element * ROUNDING, l2[HYBRID].reshape(-1, *(1,) * (element.ndim - 1)))
        for bounds in l2.values():
            self._check(sparse, result, bounds)
        if sparse.outputs[0] == self._output and sparse.op in ("Gemm", "MatMul"):
            self._last = self._last_layer(sparse, distances[0].l2, result if change is None else result - change)
        return _Distance(l2=l2, elements=element)

    def _rule(self, node: Node, fused: Fused | None, result: Array) -> Rule:
        """The rule in l2; an empty one where a local rule takes its place."""
        if fused is not None:
            return fused.rule(math.prod(result.shape[1:]))
        if is_local(node, self._variables):
            return Rule(factors=())
        return lipschitz_rule(node, self._pair.sparse, self._variables, self._shapes, self._norms)

    def _elements(
        self, node: Node, fused: Fused | None, inputs: _Inputs, distances: list[_Distance], rule: Rule, result: Array
    ) -> tuple[Rule, Array]:
        """The rule in l2, that of a local rule in the place of `rule`, and the bounds of the output's elements."""
        elements = [distance.elements for distance in distances]
        if fused is not None:
            return rule, fused.enlarge(elements[0])
        graph = self._pair.sparse
        if is_local(node, self._variables):
            local = local_rule(node, graph, inputs.dense, inputs.sparse, elements, result.shape)
            return local.l2, local.elements
        by_name = dict(zip(inputs.names, elements, strict=True))
        return rule, enlarge(node, graph, by_name, result.shape, self._batch)

    def _combined(self, rule: Rule, inputs: list[_Distance]) -> dict[str, Array]:
        """What the distances of the inputs become, for the claims that all of them have."""
        claims = [claim for claim in inputs[0].l2 if all(claim in distance.l2 for distance in inputs)]
        return {claim: rule.combine([distance.l2[claim] for distance in inputs]) for claim in claims}

    def _add_norm_change(self, l2: dict[str, Array], dense: Node, sparse: Node, size: Array) -> None:
        """Add Lip(f - f~) ||x|| + ||(f - f~)(0)|| to the recursion that measures norms, or end it where there is no rule."""
        if MEASURED_NORMS not in l2:
            return
        try:
            factor = change_factor(dense, self._pair, self._shapes, self._norms)
        except NoRuleError as error:
            self._missing_norms.add(str(error))
            del l2[MEASURED_NORMS]
            return
        of_dense = at_zero(dense, self._pair.dense, self._shapes, self._pair.dense_masks)
        offset = of_dense - at_zero(sparse, self._pair.sparse, self._shapes, self._pair.sparse_masks)
        l2[MEASURED_NORMS] = l2[MEASURED_NORMS] + factor * size + float(np.linalg.norm(offset))

    def _check(self, node: Node, result: Array, bounds: Array) -> None:
        measured = _row_norms(result - self._sparse.values[node.outputs[0]])
        # both evaluations round: 1e-12 of the tensor's norm is far above that and far below any deviation of interest
        worst = int(np.argmax(measured - bounds))
        if measured[worst] > bounds[worst] + 1e-12 * (1 + float(np.abs(_row_norms(result)).max())):
            raise AssertionError(
                f"the bound {bounds[worst]:.9g} of {node.op} {node.name!r} is below the measured {measured[worst]:.9g}"
            )

    def _last_layer(self, node: Node, input_bounds: dict[str, Array], outputs: Array) -> LastLayer:
        weight = self._sparse.values[node.inputs[1]] * node.attributes.get("alpha", 1.0)
        rows = weight if node.attributes.get("transB", 0) else weight.T
        return LastLayer(rows=rows, input_bounds=input_bounds, outputs=outputs)


def _row_norms(x: Array) -> Array:
    norms: Array = np.linalg.norm(x.reshape(len(x), -1), axis=1)
    return norms
