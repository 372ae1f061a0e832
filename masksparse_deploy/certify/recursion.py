"""The network recursion: how far the sparse network's tensors can be from the dense network's, sample by sample.

For every tensor two bounds are carried, of the l2 distance and of each element's distance. At a node with dense function f
and sparse function f~, ||f(x) - f~(x~)|| <= Lip(f~) ||x - x~|| + ||f(x) - f~(x)||, the last term evaluated on the dense x.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.elementwise import enlarge
from masksparse_deploy.certify.lipschitz import NoRuleError, lipschitz_rule, variable_tensors
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.graph.evaluate import Evaluation
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.nodes import apply_node

__all__ = ["LastLayer", "Propagation", "propagate"]

Array = npt.NDArray[Any]

# Allowance for the rounding of the float64 evaluation, one factor a node. A sum of n terms is off by at most n 2^-53 of the
# sum of their absolute values, 1e-12 for n = 9,000; it would take a cancellation by a factor of 1,000 in all elements of a
# tensor at once to use the allowance up. Stated as an assumption of the certificate.
ROUNDING = 1 + 1e-9
# Samples propagated at a time, which bounds the memory.
_CHUNK = 50


@dataclass(frozen=True, eq=False, kw_only=True)
class LastLayer:
    """What the pairwise form of the margin test needs, if the network ends in a product with a constant matrix.

    Attributes:
        rows: float64 (classes, features), the sparse file's weight.
        input_bounds: float64 (count,), bound of the l2 distance of the layer's input.
        outputs: float64 (count, classes), the sparse layer applied to the dense network's features.
    """

    rows: Array
    input_bounds: Array
    outputs: Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Propagation:
    """The recursion's result for a batch of samples.

    Attributes:
        bounds: float64 (count,), of the l2 distance between the dense and the sparse output; inf where there is no rule.
        dense: float64 (count, classes), output of the dense network.
        sparse: the same of the sparse network.
        gains: node name -> float64 (count,), ||f(x) - f~(x)|| / ||x|| without biases, for weighted nodes that differ.
        shapes: of all variable tensors, without the count.
        missing: operators without a rule, as they are used, sorted.
        last_layer: None if the network ends in something else than Gemm or MatMul.
    """

    bounds: Array
    dense: Array
    sparse: Array
    gains: dict[str, Array]
    shapes: dict[str, tuple[int, ...]]
    missing: tuple[str, ...]
    last_layer: LastLayer | None


def propagate(pair: Pair, images: Array, norms: NormCache, *, progress: Progress) -> Propagation:
    """Run the recursion; both graphs must have one input that `images` (count, ...) fits, and one output.

    Raises:
        AssertionError: a measured distance exceeds its bound, which means that this module is wrong.
    """
    parts = []
    for start in range(0, len(images), _CHUNK):
        progress("bounding the network's deviation", start, len(images))
        walk = _Walk(pair, images[start : start + _CHUNK], norms)
        for dense_node, sparse_node in zip(pair.dense.nodes, pair.sparse.nodes, strict=True):
            walk.step(dense_node, sparse_node)
        parts.append(walk.result())
    progress("bounding the network's deviation", len(images), len(images))
    return _joined(parts)


class _Walk:
    """One pass through both graphs in step, for one chunk of samples."""

    def __init__(self, pair: Pair, images: Array, norms: NormCache) -> None:
        self._pair = pair
        self._norms = norms
        self._variables = variable_tensors(pair.dense)
        (self._output,) = pair.dense.outputs
        ((name, shape),) = pair.dense.inputs.items()
        self._batch = shape[0]
        self._count = len(images)
        self._dense = Evaluation(pair.dense, images, keep=[self._output])
        self._sparse = Evaluation(pair.sparse, images, keep=[self._output])
        # name -> (l2 bound (count,), elementwise bound (count, ...)), or None where a rule was missing
        self._bounds: dict[str, tuple[Array, Array] | None] = {
            name: (np.zeros(self._count), np.zeros(images.shape, dtype=np.float64))
        }
        self._shapes: dict[str, tuple[int, ...]] = {name: images.shape[1:]}
        self._gains: dict[str, Array] = {}
        self._missing: set[str] = set()
        self._last: LastLayer | None = None

    def step(self, dense: Node, sparse: Node) -> None:
        """Compute one node in both networks, the difference its weights make, and the bounds of its output."""
        name = dense.outputs[0]
        change = self._change(dense, sparse) if name in self._variables else None
        known = {key: self._bounds[key] for key in dense.inputs if key in self._bounds}
        result = self._dense.step(dense)
        self._sparse.step(sparse)
        self._bounds = {key: value for key, value in self._bounds.items() if key in self._dense.values}
        if name not in self._variables:
            return
        self._shapes[name] = result.shape[1:]
        self._bounds[name] = self._bound(sparse, known, change, result)

    def result(self) -> Propagation:
        """The bounds of the output, once all nodes are done."""
        final = self._bounds[self._output]
        return Propagation(
            bounds=np.full(self._count, np.inf) if final is None else final[0],
            dense=self._dense.values[self._output],
            sparse=self._sparse.values[self._output],
            gains=self._gains,
            shapes=self._shapes,
            missing=tuple(sorted(self._missing)),
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
        size = _row_norms(source)
        self._gains[dense.name] = np.divide(_row_norms(linear), size, out=np.zeros_like(size), where=size > 0)
        bias = biases[0] if biases else None
        return linear if bias is None or not bias.any() else apply_node(dense, [source, weight, bias], batch=self._batch)

    def _bound(
        self, node: Node, known: dict[str, tuple[Array, Array] | None], change: Array | None, result: Array
    ) -> tuple[Array, Array] | None:
        name = node.outputs[0]
        try:
            if result.shape[:1] != (self._count,):
                raise NoRuleError(f"{node.op} across samples")
            rule = lipschitz_rule(node, self._pair.sparse, self._variables, self._shapes, self._norms)
        except NoRuleError as error:
            self._missing.add(str(error))
            return None
        distances = {key: value for key, value in known.items() if value is not None}
        if len(distances) < len(known):
            return None
        inputs = [distances[key] for key in node.inputs if key in distances]
        total = rule.combine([l2 for l2, _ in inputs])
        elements = {key: element for key, (_, element) in distances.items()}
        element = enlarge(node, self._pair.sparse, elements, result.shape, self._batch)
        if change is not None:
            total = total + _row_norms(change)
            element = element + np.abs(change)
        total = np.minimum(total, _row_norms(element)) * ROUNDING
        element = np.minimum(element * ROUNDING, total.reshape(-1, *(1,) * (element.ndim - 1)))
        self._check(node, result, total)
        if name == self._output and node.op in ("Gemm", "MatMul"):
            self._last = self._last_layer(node, inputs[0][0], result if change is None else result - change)
        return total, element

    def _check(self, node: Node, result: Array, bounds: Array) -> None:
        measured = _row_norms(result - self._sparse.values[node.outputs[0]])
        # both evaluations round: 1e-12 of the tensor's norm is far above that and far below any deviation of interest
        worst = int(np.argmax(measured - bounds))
        if measured[worst] > bounds[worst] + 1e-12 * (1 + float(np.abs(_row_norms(result)).max())):
            raise AssertionError(
                f"the bound {bounds[worst]:.9g} of {node.op} {node.name!r} is below the measured {measured[worst]:.9g}"
            )

    def _last_layer(self, node: Node, input_bounds: Array, outputs: Array) -> LastLayer:
        weight = self._sparse.values[node.inputs[1]] * node.attributes.get("alpha", 1.0)
        rows = weight if node.attributes.get("transB", 0) else weight.T
        return LastLayer(rows=rows, input_bounds=input_bounds, outputs=outputs)


def _row_norms(x: Array) -> Array:
    norms: Array = np.linalg.norm(x.reshape(len(x), -1), axis=1)
    return norms


def _joined(parts: Sequence[Propagation]) -> Propagation:
    first = parts[0]
    last = [part.last_layer for part in parts if part.last_layer is not None]
    joined_last = None
    if last:
        joined_last = LastLayer(
            rows=last[0].rows,
            input_bounds=np.concatenate([part.input_bounds for part in last]),
            outputs=np.concatenate([part.outputs for part in last]),
        )
    return Propagation(
        bounds=np.concatenate([part.bounds for part in parts]),
        dense=np.concatenate([part.dense for part in parts]),
        sparse=np.concatenate([part.sparse for part in parts]),
        gains={name: np.concatenate([part.gains[name] for part in parts]) for name in first.gains},
        shapes=first.shapes,
        missing=first.missing,
        last_layer=joined_last,
    )
