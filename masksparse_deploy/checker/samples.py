"""The recursions for given samples, with what is measured on them."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.elementwise import enlarged
from masksparse_deploy.checker.evaluation import Walk, apply_exactly
from masksparse_deploy.checker.network import attributes_of
from masksparse_deploy.checker.products import product_of_samples
from masksparse_deploy.checker.recursion import at_zero, change_factor
from masksparse_deploy.checker.rules import NoRuleError, Rule, rule_of
from masksparse_deploy.checker.setting import Setting

__all__ = ["HYBRID", "NORMS", "RESIDUALS", "Propagated", "propagate"]

Array = npt.NDArray[Any]

NORMS = "end-to-end, measured norms"
RESIDUALS = "end-to-end, measured residuals"
HYBRID = "end-to-end, hybrid"

# Samples at a time, which bounds the memory.
_CHUNK = 25


@dataclass(kw_only=True)
class Propagated:
    """What the recursions give for samples; bounds are in float64 and not enlarged.

    Attributes:
        bounds: claim -> (count,), for the claims with a rule for every operator.
        dense: (count, classes), the dense network's output.
        sparse: the same of the sparse network.
        gains: node name -> (count,), ||(f - f~)(x)|| / ||x|| without biases.
        missing: operators without a rule; no claim has bounds then.
        missing_norms: the same for the recursion of measured norms alone.
        last: claim -> (count,), bounds of the input of a last layer that is a product with a constant matrix.
        last_outputs: (count, classes), that layer of the sparse network on the dense network's features.
        last_rows: (classes, features), its weights.
    """

    bounds: dict[str, Array]
    dense: Array
    sparse: Array
    gains: dict[str, Array] = field(default_factory=dict)
    missing: set[str] = field(default_factory=set)
    missing_norms: set[str] = field(default_factory=set)
    last: dict[str, Array] = field(default_factory=dict)
    last_outputs: Array | None = None
    last_rows: Array | None = None

    def certified(self, claim: str, factor: float) -> npt.NDArray[np.bool_]:
        """Samples that provably keep their class if bounds are `factor` times as large."""
        ordered = np.sort(self.dense, axis=1)
        kept: npt.NDArray[np.bool_] = ordered[:, -1] - ordered[:, -2] > math.sqrt(2) * self.bounds[claim] * factor
        if self.last_outputs is None or self.last_rows is None:
            return kept
        for sample, outputs in enumerate(self.last_outputs):
            predicted = int(self.dense[sample].argmax())
            others = np.delete(np.arange(len(outputs)), predicted)
            distances = np.linalg.norm(self.last_rows[predicted] - self.last_rows[others], axis=1)
            gaps = outputs[predicted] - outputs[others]
            kept[sample] |= bool((gaps > distances * self.last[claim][sample] * factor).all())
        return kept


@dataclass(frozen=True, eq=False, kw_only=True)
class _Distance:
    """Bounds for one tensor: l2 by claim, (count,), and of each element for the hybrid claim, (count, ...)."""

    l2: Mapping[str, Array]
    elements: Array


def propagate(setting: Setting, images: Array, *, progress: Callable[[str, int, int], None] | None = None) -> Propagated:
    """Run the recursions for `images` (count, ...), which must fit the network's one input.

    Raises:
        NoRuleError: an operator cannot be computed at all.
        KeyError: the shape of a tensor is not known.
    """
    size = setting.pair.dense.batch or _CHUNK
    parts = []
    for start in range(0, len(images), size):
        if progress is not None:
            progress("checking samples", start, len(images))
        chunk = images[start : start + size]
        # a batch size that the file fixes is filled up, and what was added is cut off again
        filled = chunk if setting.pair.dense.batch is None else np.resize(chunk, (size, *chunk.shape[1:]))
        parts.append(_cut(_propagate(setting, filled), len(chunk)))
    return _joined(parts)


def _propagate(setting: Setting, images: Array) -> Propagated:
    dense, sparse = Walk(setting.pair.dense, images), Walk(setting.pair.sparse, images)
    around = setting.sparse
    (output,) = setting.pair.dense.outputs
    result = Propagated(bounds={}, dense=np.zeros(0), sparse=np.zeros(0))
    nothing = dict.fromkeys((NORMS, RESIDUALS, HYBRID), np.zeros(len(images)))
    known: dict[str, _Distance | None] = {
        setting.pair.dense.inputs[0].name: _Distance(l2=nothing, elements=np.zeros(images.shape))
    }
    of_gates = {name for node in setting.pair.sparse.nodes for name in around.sources(node) if name not in node.input}
    for node in setting.pair.dense.nodes:
        before, before_sparse = dense.inputs(node), sparse.inputs(node)
        after, other = dense.step(node), sparse.step(node)
        if node.output[0] not in around.variables:
            continue
        step = _Step(setting, node, before, before_sparse, after, result, count=len(images))
        known[node.output[0]] = step.distance({name: known[name] for name in around.sources(node)})
        known = {name: value for name, value in known.items() if name in dense.values or name in of_gates}
        if node.output[0] == output:
            result.dense, result.sparse = after, other
    final = known[output]
    result.bounds = {} if final is None else dict(final.l2)
    if any(_norms(array).shape != (len(images),) for array in (result.dense, result.sparse)) or not around.variables:
        raise NoRuleError("an output that has no row for each sample")
    return result


class _Step:
    """One node in both networks, on the dense network's tensors."""

    def __init__(
        self,
        setting: Setting,
        node: onnx.NodeProto,
        before: list[Array | None],
        before_sparse: list[Array | None],
        after: Array,
        into: Propagated,
        *,
        count: int,
    ) -> None:
        self._setting = setting
        self._node = node
        self._before = before
        self._before_sparse = before_sparse
        self._after = after
        self._into = into
        self._count = count

    def distance(self, known: Mapping[str, _Distance | None]) -> _Distance | None:
        """The bounds of the node's output; None where there is no rule for it or for what came before it."""
        node, around = self._node, self._setting.sparse
        change = self._change()
        try:
            if self._after.shape[:1] != (self._count,):
                raise NoRuleError(f"{node.op_type} across samples")
            rule, met = self._product() if around.is_product(node) else (rule_of(node, around), None)
            distances = {name: value for name, value in known.items() if value is not None}
            if len(distances) < len(known):
                return None
            inputs = [distances[name] for name in around.sources(node)]
            if met is None:
                by_name = {name: value.elements for name, value in distances.items()}
                elements = enlarged(node, around, by_name, self._after.shape)
            else:
                elements = met[0] * inputs[0].elements + met[1] * inputs[1].elements
        except NoRuleError as error:
            self._into.missing.add(str(error))
            return None
        if node.output[0] in self._setting.pair.sparse.masks:  # what it holds there depends on nothing
            elements = elements * self._setting.pair.sparse.masks[node.output[0]].kept
        l2 = self._combined(rule, inputs)
        if change is not None:
            elements = elements + np.abs(change)
            for claim in (RESIDUALS, HYBRID):
                l2[claim] = l2[claim] + _norms(change)
            self._add_from_norms(l2)
        l2[HYBRID] = np.minimum(l2[HYBRID], _norms(elements))
        if node.output[0] in self._setting.pair.dense.outputs and node.op_type in ("Gemm", "MatMul"):
            self._keep_last(inputs[0].l2, self._after if change is None else self._after - change)
        limit = l2[HYBRID].reshape(-1, *(1,) * (elements.ndim - 1))
        return _Distance(l2=l2, elements=np.minimum(elements, limit))

    def _product(self) -> tuple[Rule, tuple[Array, Array]]:
        dense, sparse = ([array for array in before if array is not None] for before in (self._before, self._before_sparse))
        return product_of_samples(dense, sparse, self._after.shape)

    def _combined(self, rule: Rule, inputs: list[_Distance]) -> dict[str, Array]:
        claims = [claim for claim in (NORMS, RESIDUALS, HYBRID) if all(claim in value.l2 for value in inputs)]
        return {claim: rule.combine([value.l2[claim] for value in inputs]) for claim in claims}

    def _change(self) -> Array | None:
        """(f - f~)(x), None where the node reads the same constants in both files."""
        pair, node = self._setting.pair, self._node
        if not pair.differs(node):
            return None
        opset = pair.dense.opset
        if node.op_type not in ("Conv", "Gemm", "MatMul") or self._before[0] is None:
            constants = [pair.sparse.constants.get(name) for name in node.input]
            other = [value if constant is None else constant for value, constant in zip(self._before, constants, strict=True)]
            return self._after - apply_exactly(node, other, opset=opset)
        # linear in weight and bias, and their differences lose no digits
        dense, sparse = pair.weights(node)
        x, biases = self._before[0], pair.biases(node)
        bare = onnx.NodeProto()
        bare.CopyFrom(node)
        del bare.input[2:]
        parts = pair.parts(node)
        if parts is None:
            linear = apply_exactly(bare, [x, dense - sparse], opset=opset)
        else:
            moved = [apply_exactly(bare, [x, part.weight], opset=opset) * part.region for part in parts]
            linear = np.asarray(sum(moved))
        size = _norms(x)
        self._into.gains[node.name] = np.divide(_norms(linear), size, out=np.zeros_like(size), where=size > 0)
        if parts is not None:
            return np.asarray(linear + sum(part.offset[:, None, None] * part.region for part in parts))
        return linear if biases is None else apply_exactly(node, [x, dense - sparse, biases[0] - biases[1]], opset=opset)

    def _add_from_norms(self, l2: dict[str, Array]) -> None:
        """Lip(f - f~) ||x|| + ||(f - f~)(0)||, or the end of this recursion where that is not known."""
        if NORMS not in l2:
            return
        try:
            factor = change_factor(self._node, self._setting)
        except NoRuleError as error:
            self._into.missing_norms.add(str(error))
            del l2[NORMS]
            return
        offset = at_zero(self._node, self._setting.dense) - at_zero(self._node, self._setting.sparse)
        position = next(place for place, name in enumerate(self._node.input) if name in self._setting.sparse.variables)
        x = self._before[position]
        assert x is not None
        l2[NORMS] = l2[NORMS] + factor * _norms(x) + float(np.linalg.norm(offset))

    def _keep_last(self, bounds: Mapping[str, Array], outputs: Array) -> None:
        weight = self._setting.pair.weights(self._node)[1] * attributes_of(self._node).get("alpha", 1.0)
        self._into.last = dict(bounds)
        self._into.last_outputs = outputs
        self._into.last_rows = weight if attributes_of(self._node).get("transB", 0) else weight.T


def _norms(x: Array) -> Array:
    norms: Array = np.sqrt(np.square(x.reshape(len(x), -1)).sum(axis=1))
    return norms


def _cut(part: Propagated, count: int) -> Propagated:
    """The first `count` samples."""
    return Propagated(
        bounds={claim: array[:count] for claim, array in part.bounds.items()},
        dense=part.dense[:count],
        sparse=part.sparse[:count],
        gains={name: array[:count] for name, array in part.gains.items()},
        missing=part.missing,
        missing_norms=part.missing_norms,
        last={claim: array[:count] for claim, array in part.last.items()},
        last_outputs=None if part.last_outputs is None else part.last_outputs[:count],
        last_rows=part.last_rows,
    )


def _joined(parts: list[Propagated]) -> Propagated:
    def together(arrays: list[dict[str, Array]]) -> dict[str, Array]:
        return {name: np.concatenate([array[name] for array in arrays]) for name in arrays[0]}

    outputs = [part.last_outputs for part in parts if part.last_outputs is not None]
    return Propagated(
        bounds=together([part.bounds for part in parts]),
        dense=np.concatenate([part.dense for part in parts]),
        sparse=np.concatenate([part.sparse for part in parts]),
        gains=together([part.gains for part in parts]),
        missing=parts[0].missing,
        missing_norms=parts[0].missing_norms,
        last=together([part.last for part in parts]),
        last_outputs=np.concatenate(outputs) if outputs else None,
        last_rows=parts[0].last_rows,
    )
