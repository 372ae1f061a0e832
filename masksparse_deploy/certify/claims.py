"""From numbers to claims: what is proved, under which assumptions, and whether it is of any use."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from masksparse_deploy.certify.propagation import LastLayer, Propagation
from masksparse_deploy.core.artifacts.certificate import (
    DATA_FREE,
    END_TO_END,
    HYBRID,
    LAYERWISE,
    MEASURED_NORMS,
    MEASURED_RESIDUALS,
    Claim,
    LayerBound,
)
from masksparse_deploy.core.decimals import rounded_up

__all__ = [
    "certified_by_margin",
    "certified_by_pairs",
    "data_free_claim",
    "inconclusive_claim",
    "layerwise_claim",
    "of_masked_positions",
    "sample_claim",
    "smallest",
]

Array = npt.NDArray[Any]

_LOCAL = "; products of two tensors and normalization by what both networks compute for the sample"
_METHODS = {
    MEASURED_NORMS: (
        "recursion over the graph: at each layer the operator norm times the distance so far, plus the operator norm of what "
        "was changed times the measured norm of the dense network's activations" + _LOCAL
    ),
    MEASURED_RESIDUALS: (
        "recursion over the graph: at each layer the operator norm times the distance so far, plus the measured effect of the "
        "changed weights on the dense network's activations" + _LOCAL
    ),
    HYBRID: (
        "recursion over the graph: at each layer the operator norm times the distance so far, plus the measured effect of the "
        "changed weights on the dense network's activations; the smaller of the l2 and the elementwise form" + _LOCAL
    ),
}

_POSITIONS = "; masked positions as in section 7 of docs/bounds.md"
_EXACT = "The networks are computed in exact real arithmetic; rounding by an engine comes on top."
_SLACK = "Bounds are computed in float64 and enlarged by a relative 1e-9 for each operator to allow for its rounding."
_NORMS = "Convolutions pad with zeros and have inputs of the sizes that the model has for the images of the data set."


def certified_by_margin(logits: Array, bounds: Array) -> npt.NDArray[np.bool_]:
    """Samples whose class cannot change: margin > sqrt(2) bound.

    Two logits move by at most sqrt(2) times the l2 distance of the outputs towards each other. `logits` is (count, classes),
    of either network; `bounds` (count,).
    """
    ordered = np.sort(logits, axis=1)
    certified: npt.NDArray[np.bool_] = ordered[:, -1] - ordered[:, -2] > math.sqrt(2) * bounds
    return certified


def certified_by_pairs(logits: Array, last: LastLayer, claim: str) -> npt.NDArray[np.bool_]:
    """The same from the last layer's weights w~ and the bounds of `claim` for its input: never weaker where those are equal.

    With c the dense network's class, z' = f~_last(x_dense) and e the bound of the layer's input distance, the class is
    certified if z'_c - z'_j > ||w~_c - w~_j|| e for every other class j.
    """
    classes = logits.argmax(axis=1)
    samples = np.arange(len(logits))
    gaps = last.outputs[samples, classes][:, None] - last.outputs
    # one class after the other: for all at once it would take classes x classes x features numbers
    apart = {int(label): np.linalg.norm(last.rows[label] - last.rows, axis=1) for label in np.unique(classes)}
    distances = np.stack([apart[int(label)] for label in classes])
    holds = gaps > distances * last.input_bounds[claim][:, None]
    holds[samples, classes] = True
    certified: npt.NDArray[np.bool_] = holds.all(axis=1)
    return certified


def layerwise_claim(layers: Sequence[LayerBound], gains: Mapping[str, Array]) -> Claim:
    """For every input of every masked layer; `gains` are measured ||D * x|| / ||x|| by node name."""
    if not layers:
        return inconclusive_claim(
            LAYERWISE, "The two files hold the same weights and no layer is annotated: nothing is masked."
        )
    measured = {layer.node: float(gains[layer.node].max()) for layer in layers if layer.node in gains}
    ratios = [layer.difference_norm / measured[layer.node] for layer in layers if measured.get(layer.node, 0.0) > 0]
    worst = max(layers, key=lambda layer: layer.difference_norm)
    worst_measured = measured.get(worst.node)
    detail = f"Masked layers: {len(layers)}; the largest bound is that of {worst.layer}."
    if ratios:
        detail += (
            f" On the samples the bounds are {np.median(ratios):.2g} times the largest measured gain (median over layers)."
        )
    return Claim(
        name=LAYERWISE,
        statement=(
            f"For every masked layer ({len(layers)} in all) and every input x of the layer, the l2 distance between the "
            "dense and the sparse layer's output is at most difference_norm ||x|| + bias_difference sqrt(output_positions), "
            "with the figures listed for the layer; the largest difference_norm is given as the bound."
        ),
        bound=worst.difference_norm,
        unit="output l2 per input l2",
        method="operator norms of K - K~: the smallest of bounds (a), (b) and (c) of docs/bounds.md",
        assumptions=(_EXACT, _NORMS, "Norms are computed in float64, and their rounding is part of them."),
        status="useful",
        detail=detail,
        measured=worst_measured,
        tightness=_tightness(worst.difference_norm, worst_measured),
        certified_count=None,
        sample_count=None if worst_measured is None else len(gains[worst.node]),
    )


def data_free_claim(bound: float, *, radius: float, run: Propagation, data_sha256: str) -> Claim:
    """For every input in the ball that holds the data set; `radius` has six digits at most (see `rounded_up`)."""
    measured = float(_distances(run).max())
    certified = certified_by_margin(run.dense, np.full(len(run.dense), bound))
    return _end_to_end(
        run,
        name=DATA_FREE,
        statement=(
            f"For every input whose l2 norm is at most {radius:.6g}, the l2 distance between the outputs of the dense and the "
            f"sparse network is at most {rounded_up(bound):.6g}."
        ),
        bound=bound,
        measured=measured,
        certified=certified,
        method="recursion over the graph with operator norms alone, ||x|| bounded along with the distance",
        assumptions=(_EXACT, _NORMS, _SLACK, f"No image of the data set {data_sha256} has a norm above {radius:.6g}."),
        remark="",
    )


def sample_claim(name: str, run: Propagation, *, data_sha256: str) -> Claim:
    """The claim called `name` for each of the samples that were propagated; `run` has bounds for it."""
    bounds = run.bounds[name]
    count = len(bounds)
    measured = _distances(run)
    _check(bounds, measured)
    certified = certified_by_margin(run.dense, bounds)
    if run.last_layer is not None:
        certified |= certified_by_pairs(run.dense, run.last_layer, name)
    moved = measured > 0
    ratios = bounds[moved] / measured[moved]
    remark = (
        f" Over the samples the bound is {np.median(ratios):.3g} times the measured distance (median)." if moved.any() else ""
    )
    return _end_to_end(
        run,
        name=name,
        statement=(
            f"For each of the first {count} samples of the data set, the l2 distance between the outputs of the dense and the "
            f"sparse network is at most that sample's own bound; the largest is {rounded_up(bounds.max()):.6g}."
        ),
        bound=float(bounds.max()),
        measured=float(measured.max()),
        certified=certified,
        method=_METHODS[name],
        assumptions=(_EXACT, _NORMS, _SLACK, f"The samples are the first {count} of the data set {data_sha256}."),
        remark=remark,
    )


def smallest(claims: Sequence[Claim]) -> str | None:
    """The name of the end-to-end claim with the smallest bound, the first of those that are equal; None if none has a bound."""
    bounds = {claim.name: claim.bound for claim in claims if claim.name in END_TO_END and claim.bound is not None}
    return min(bounds, key=lambda name: bounds[name], default=None)


def of_masked_positions(claim: Claim) -> Claim:
    """The claim about networks of which at least one has masked positions: its method says so."""
    return claim if claim.bound is None else claim.model_copy(update={"method": claim.method + _POSITIONS})


def inconclusive_claim(name: str, detail: str) -> Claim:
    """A claim for which nothing is proved; `detail` says why."""
    return Claim(
        name=name,
        statement="Nothing is claimed.",
        bound=None,
        unit="output l2 per input l2" if name == LAYERWISE else "output l2",
        method="none",
        assumptions=(),
        status="inconclusive",
        detail=detail,
        measured=None,
        tightness=None,
        certified_count=None,
        sample_count=None,
    )


def _end_to_end(
    run: Propagation,
    *,
    name: str,
    statement: str,
    bound: float,
    measured: float,
    certified: npt.NDArray[np.bool_],
    method: str,
    assumptions: tuple[str, ...],
    remark: str,
) -> Claim:
    total, kept = len(certified), int(certified.sum())
    _check(np.array([bound]), np.array([measured]))
    if (certified & (run.dense.argmax(axis=1) != run.sparse.argmax(axis=1))).any():
        raise AssertionError("a certified sample changes its predicted class")
    tightness = _tightness(bound, measured)
    status: Literal["useful", "vacuous"] = "useful" if kept else "vacuous"
    if kept:
        detail = f"It proves for {kept} of {total} samples that masking does not change the predicted class."
    else:
        size = "" if tightness is None else f": it is {tightness:.3g} times the largest measured distance"
        detail = f"Vacuous: true, but it proves of none of the {total} samples that its predicted class stays{size}."
    return Claim(
        name=name,
        statement=statement,
        bound=bound,
        unit="output l2",
        method=method,
        assumptions=assumptions,
        status=status,
        detail=detail + remark,
        measured=measured,
        tightness=tightness,
        certified_count=kept,
        sample_count=total,
    )


def _distances(run: Propagation) -> Array:
    distances: Array = np.linalg.norm(run.dense - run.sparse, axis=1)
    return distances


def _tightness(bound: float, measured: float | None) -> float | None:
    return bound / measured if measured else None


def _check(bounds: Array, measured: Array) -> None:
    """A measured distance above its bound means that the bound is wrong; 1e-12 covers the rounding of what was measured."""
    worst = int(np.argmax(measured - bounds))
    if measured[worst] > bounds[worst] + 1e-12 * (1 + measured[worst]):
        raise AssertionError(f"the bound {bounds[worst]:.9g} is below the measured distance {measured[worst]:.9g}")
