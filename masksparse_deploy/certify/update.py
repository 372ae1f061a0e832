"""New weights under the same masks: what the update did to each layer, and how far it might have gone; docs/bounds.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.data_free import Allowance, DataFree
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair
from masksparse_deploy.certify.positions import LayerPositions, Masks, difference_norm
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.core.artifacts.updating import LayerBudget
from masksparse_deploy.graph.model import Graph, Node

__all__ = [
    "Budgets",
    "LayerPair",
    "LayerUpdate",
    "find_budgets",
    "frobenius_factor",
    "layer_pairs",
    "other_changes",
    "removed_change",
]

Array = npt.NDArray[Any]

# Frobenius norms are sums in float64, off by far less than this; budgets are that much smaller.
_SLACK = 1 - 1e-9
# Halvings of the interval that a budget is searched in: the last one tells 1 part in 10^9 of the first.
_HALVINGS = 30
# The widest budget that is looked for, as a share of a layer's norm: beyond it the weights are others altogether.
_WIDEST = 1.0


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPair:
    """A layer of the dense and of the sparse file, float64.

    Attributes:
        node: the operator in the dense file.
        dense: its weight; `sparse` that of the sparse file.
        dense_offset: its bias, zeros if it has none; `sparse_offset` likewise.
        positions: outputs for each element of the bias.
        masks: which of them are computed; None if all.
    """

    node: Node
    dense: Array
    sparse: Array
    dense_offset: Array
    sparse_offset: Array
    positions: int
    masks: LayerPositions | None = None

    @property
    def removed(self) -> Array:
        """What the mask removes: the dense weight where the sparse one is 0."""
        removed: Array = np.where(self.sparse != 0, 0, self.dense)
        return removed

    @property
    def spread(self) -> int:
        """How many times ||D||_F an update can change K - K~ by: 0 without a mask, 1 with nothing but a mask, 2 otherwise.

        With D in the dense file, a mask alone makes it keep * D in the sparse one, and D - keep * D is no longer than D.
        Statistics or weights of its own let the sparse file change by another D~, and ||D - D~|| <= ||D|| + ||D~||. Where only
        one network computes a position, its whole D counts; ||M D - M~ D~|| <= ||D|| + ||D~|| as well.
        """
        if not np.array_equal(self.dense_offset, self.sparse_offset):
            return 2
        if np.array_equal(self.dense, self.sparse):
            return sum(self._one_sided)
        if any(self._one_sided):
            return 2
        return 1 if np.array_equal(self.sparse, self.dense - self.removed) else 2

    @property
    def _one_sided(self) -> tuple[bool, bool]:
        """Whether there are positions that the dense network alone computes, and that the sparse one alone does."""
        masks = self.masks
        return (False, False) if masks is None else (bool(masks.dense_only.any()), bool(masks.sparse_only.any()))

    def moved(self, dense: Array, sparse: Array) -> float:
        """||M D - M~ D~||, from above, in the norm in which ||D|| is ||D||_F: of D - D~ alone where nothing is masked."""
        sides = zip((dense, sparse), self._one_sided, strict=True)
        whole = math.hypot(_norm(dense - sparse), *(_norm(array) for array, counts in sides if counts))
        return min(whole, _norm(dense) + _norm(sparse)) if any(self._one_sided) else whole

    @property
    def offset_spread(self) -> int:
        """The same of the biases: 0 where they are equal and only a mask makes the difference."""
        return 2 if self.spread == 2 else 0


@dataclass(frozen=True, kw_only=True)
class LayerUpdate:
    """How far an update moved one layer: ||D||_F, ||D~||_F, ||M D - M~ D~||_F, and the same in l2 for the biases."""

    dense: float
    sparse: float
    difference: float
    dense_offset: float
    sparse_offset: float
    offset_difference: float

    @classmethod
    def between(cls, old: LayerPair, new: LayerPair) -> "LayerUpdate":
        """The update from `old` to `new`."""
        weights = (new.dense - old.dense, new.sparse - old.sparse)
        offsets = (new.dense_offset - old.dense_offset, new.sparse_offset - old.sparse_offset)
        return cls(
            dense=_norm(weights[0]),
            sparse=_norm(weights[1]),
            difference=old.moved(*weights),
            dense_offset=_norm(offsets[0]),
            sparse_offset=_norm(offsets[1]),
            offset_difference=_norm(offsets[0] - offsets[1]),
        )

    @staticmethod
    def size(array: Array) -> float:
        """The Frobenius norm that updates are measured in."""
        return _norm(array)

    def within(self, budget: float, offset_budget: float, old: LayerPair) -> bool:
        """Whether the proof for a budget covers this update of `old`: Frobenius norms alone, nothing else is computed."""
        return (
            max(self.dense, self.sparse) <= budget
            and self.difference <= old.spread * budget
            and max(self.dense_offset, self.sparse_offset) <= offset_budget
            and self.offset_difference <= old.offset_spread * offset_budget
        )

    def within_layerwise(self, budget: LayerBudget, old: LayerPair, *, growth: float) -> bool:
        """Whether the layer's own claim keeps its limits, which only depend on what the files differ by.

        That D - D~ is within `spread` times the budget is all that is needed: it is, where ||D||_F and ||D~||_F are within.
        """
        offset_budget = growth * _norm(old.dense_offset - old.sparse_offset) * _SLACK
        return self.difference <= old.spread * (budget.layerwise or 0.0) and self.offset_difference <= offset_budget


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """The budgets of a certificate, by the name of each layer's output.

    Attributes:
        layers: one for each layer with a constant weight.
        bound: the data-free bound that is kept, `limit` what it may become; None where there is no such bound.
        share: the end-to-end budget of each layer over ||K||_F; None likewise.
    """

    layers: Mapping[str, LayerBudget]
    bound: float | None
    limit: float | None
    share: float | None


def layer_pairs(pair: Pair, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LayerPair]:
    """The layers with constant weights and biases, by the name of their output.

    Args:
        pair: the two graphs.
        shapes: of variable tensors, without the batch; layers with outputs of unknown shape are left out.
    """
    found = {}
    for node in pair.dense.nodes:
        constants = [name for name in node.inputs[1:] if name]
        if node.op not in ("Conv", "Gemm", "MatMul") or any(name not in pair.dense.constants for name in constants):
            continue
        result = shapes.get(node.outputs[0])
        if result is None:
            continue
        channels = result[0] if node.op == "Conv" else result[-1]
        dense, sparse = (
            [graph.constants[name].astype(np.float64) for name in constants] for graph in (pair.dense, pair.sparse)
        )
        # Gemm broadcasts its bias over the rows and, where it is shorter, over the columns
        biases = [arrays[1] if len(arrays) > 1 else np.zeros(channels) for arrays in (dense, sparse)]
        offsets = [np.broadcast_to(bias, np.broadcast_shapes(bias.shape, (channels,))) for bias in biases]
        found[node.outputs[0]] = LayerPair(
            node=node,
            dense=dense[0],
            sparse=sparse[0],
            dense_offset=offsets[0],
            sparse_offset=offsets[1],
            positions=math.prod(result) // channels,
            masks=pair.positions(node),
        )
    return found


def other_changes(old: Pair, new: Pair, layers: Mapping[str, LayerPair]) -> tuple[str, ...]:
    """Operators that are not among `layers` and read other constants than before: no budget covers them; sorted names.

    Among them are layers of which other positions are masked, or hold something else in relation to the bias.
    """
    changed = set()
    for before, after in ((old.dense, new.dense), (old.sparse, new.sparse)):
        for node in before.nodes:
            moved = any(
                not np.array_equal(before.constants[name], after.constants[name])
                for name in node.inputs
                if name in before.constants
            )
            if moved and node.outputs[0] not in layers:
                changed.add(f"{node.op} {node.name}")
    for node in old.dense.nodes:
        held = [[_held(node, pair.dense, pair.dense_masks), _held(node, pair.sparse, pair.sparse_masks)] for pair in (old, new)]
        if any(not np.array_equal(one, other) for one, other in zip(*held, strict=True)):
            changed.add(f"{node.op} {node.name}")
    return tuple(sorted(changed))


def _held(node: Node, graph: Graph, masks: Masks) -> Array:
    """What masked positions of a layer hold, the bias subtracted, (channels, height, width); infinity elsewhere."""
    masked = masks.get(node.outputs[0])
    if masked is None:
        return np.zeros(0)
    bias = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    constant = masked.constant.astype(np.float64)
    above = constant if bias is None else constant - bias.astype(np.float64)
    return np.where(masked.keep, np.inf, above[:, None, None])


def removed_change(before: LayerPair, after: LayerPair, shape: tuple[int, ...], norms: NormCache) -> tuple[float, float]:
    """How much larger an update can make the norm of what masks remove from one layer.

    Args:
        before: the layer before the update.
        after: the same layer after it.
        shape: of its input, without the batch.
        norms: operator norms known so far.

    Returns:
        A bound of the operator norm of the difference, and c times its Frobenius norm, which bounds it as well.
    """
    remaining = [layer.dense - layer.removed for layer in (before, after)]
    moves = after.dense - before.dense, remaining[1] - remaining[0]
    norm = difference_norm(before.node, *moves, before.masks, shape, norms).value
    return norm, frobenius_factor(before.node, before.dense) * before.moved(*moves)


def frobenius_factor(node: Node, weight: Array) -> float:
    """The factor c of ||x -> D * x|| <= c ||D||_F for any D of the shape of `weight`; masks don't make it larger.

    The Fourier symbol is a sum of one matrix for each tap, so its norm is at most the sum of theirs, sqrt(taps) ||D||_F by
    Cauchy and Schwarz. Space-to-depth leaves ceil(k / s) taps along an axis with stride s.
    """
    if node.op != "Conv":
        return abs(float(node.attributes.get("alpha", 1.0)))
    taps = weight.shape[2:]
    strides = node.attributes.get("strides", (1,) * len(taps))
    dilations = node.attributes.get("dilations", (1,) * len(taps))
    counts = [math.ceil(k / s) if d == 1 else k for k, s, d in zip(taps, strides, dilations, strict=True)]
    return math.sqrt(math.prod(counts))


def find_budgets(
    pair: Pair,
    *,
    difference_norms: Mapping[str, float],
    growth: float,
    radius: float,
    shapes: Mapping[str, tuple[int, ...]],
    norms: NormCache,
) -> Budgets:
    """How far every layer may move while the layerwise and the data-free claim grow by no more than a share of themselves.

    Args:
        pair: the files of the certificate.
        difference_norms: of the certificate's layers, by the name of the node.
        growth: 0.1 lets bounds grow by a tenth.
        radius: of the ball of inputs of the data-free claim.
        shapes: of all variable tensors, without the batch.
        norms: operator norms known so far.
    """
    layers = layer_pairs(pair, shapes)
    try:
        recursion = DataFree(pair, shapes=shapes, norms=norms)
        bound = recursion.bound(radius)
    except NoRuleError:
        recursion, bound = None, math.inf
    share, limit = None, None
    if recursion is not None and math.isfinite(bound):
        limit = (1 + growth) * bound
        share = _widest_share(recursion, layers, radius=radius, limit=limit)
    budgets = {
        name: _layer_budget(layer, difference_norms.get(layer.node.name), growth=growth, share=share)
        for name, layer in layers.items()
    }
    return Budgets(layers=budgets, bound=bound if math.isfinite(bound) else None, limit=limit, share=share)


def _layer_budget(layer: LayerPair, difference_norm: float | None, *, growth: float, share: float | None) -> LayerBudget:
    limit = budget = None
    if layer.spread:
        assert difference_norm is not None, "the certificate bounds every layer that differs"
        limit = (1 + growth) * difference_norm
        room = _SLACK * growth * difference_norm / frobenius_factor(layer.node, layer.dense)
        budget = room / layer.spread
    return LayerBudget(
        spread=layer.spread,
        layerwise_limit=limit,
        layerwise=budget,
        end_to_end=None if share is None else share * _norm(layer.dense),
        end_to_end_offset=None if share is None else share * _norm(layer.dense_offset),
    )


def _widest_share(recursion: DataFree, layers: Mapping[str, LayerPair], *, radius: float, limit: float) -> float:
    """The largest share of ||K_l||_F, the same for all layers, that keeps the bound within `limit`; evaluated, so sound."""

    def keeps(share: float) -> bool:
        return recursion.bound(radius, {name: _allowance(layer, share) for name, layer in layers.items()}) <= limit

    low, high = 0.0, _WIDEST
    if keeps(high):
        return high * _SLACK
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low * _SLACK


def _allowance(layer: LayerPair, share: float) -> Allowance:
    weight = frobenius_factor(layer.node, layer.dense) * share * _norm(layer.dense)
    offset = abs(float(layer.node.attributes.get("beta", 1.0))) * share * _norm(layer.dense_offset) * math.sqrt(layer.positions)
    return Allowance(
        weight=weight,
        offset=offset,
        difference=layer.spread * weight,
        offset_difference=layer.offset_spread * offset,
    )


def _norm(array: Array) -> float:
    return float(np.linalg.norm(array))
