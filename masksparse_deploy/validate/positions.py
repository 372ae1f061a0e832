"""Masked positions on the way into the engine: those that were baked, those that the file has, and those of the plan."""

from collections.abc import Iterator

import numpy as np

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.position_claims import broken_claims
from masksparse_deploy.graph.positions import MaskedPositions, position_masks
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["CHECK_NAME", "check_positions", "has_positions"]

CHECK_NAME = "masked positions"
_SHOWN = 3


def has_positions(sparse: Graph, baked: BakeReport | None) -> bool:
    """Whether the file masks positions, or should."""
    return bool(position_masks(sparse)) or (baked is not None and bool(baked.positions))


def check_positions(sparse: Graph, plan: Graph | None, baked: BakeReport | None, *, is_rewritten: bool) -> Check:
    """Whether the file masks the positions that were baked, holds the biases there, and the plan has the same masks.

    Args:
        sparse: the file that carries the masks.
        plan: the engine's plan where it can be read back, else None.
        baked: the report of the bake stage, if there is one.
        is_rewritten: whether the engine was built from another form of the file, which has a check of its own.

    Raises:
        ArtifactError: an annotated operator is not of the form that baking writes.
    """
    masks = {masked.conv.name: masked for masked in position_masks(sparse).values()}
    faults = [*_in_file(sparse, masks), *(() if baked is None else _against_report(masks, baked))]
    detail = f"{len(masks)} convolutions mask positions, as baked; the others hold the convolution's bias"
    if is_rewritten:
        detail += "; the engine has them in another form, see the check of the rewritten file"
    elif plan is None:
        detail += "; the backend does not let a plan be read back"
    else:
        faults += _in_plan(masks, plan)
        detail += "; read back from the plan: the same masks and biases"
    more = f"; and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
    return Check(
        name=CHECK_NAME,
        measured=float(len(faults)),
        bound=None,
        tolerance=0.0,
        unit="faults",
        verdict="fail" if faults else "pass",
        detail="; ".join(faults[:_SHOWN]) + more if faults else detail,
    )


def _in_file(sparse: Graph, masks: dict[str, MaskedPositions]) -> Iterator[str]:
    layers = {layer.node.name: layer for layer in weighted_layers(sparse)}
    for name, masked in masks.items():
        if name not in layers:
            yield f"{name}: its weight is not stored, so that nothing tells what dropped positions should hold"
            continue
        yield from (f"{name}: {why}" for why in broken_claims(layers[name], masked))


def _against_report(masks: dict[str, MaskedPositions], baked: BakeReport) -> Iterator[str]:
    recorded = {row.node: row for row in baked.positions}
    for node, row in recorded.items():
        if node not in masks:
            yield f"{node}: the bake report has masked positions of {row.layer}, the file computes all"
        elif np.packbits(masks[node].keep).tobytes().hex() != row.keep:
            yield f"{node}: the file masks other positions than the bake report has of {row.layer}"
    yield from (f"{node}: the file masks positions, and the bake report has none of it" for node in masks.keys() - recorded)


def _in_plan(masks: dict[str, MaskedPositions], plan: Graph) -> Iterator[str]:
    """Differences between the masks of the file and what the plan has; a runtime may compute them in another precision."""
    operators = {node.name: node for node in plan.nodes if node.op == "Where" and not node.domain}
    producers = {name: node for node in plan.nodes for name in node.outputs}
    origins = Scope(plan).origins
    for name, masked in masks.items():
        found = operators.get(masked.where.name)
        constants = [] if found is None else [origins.find(found.inputs[place]) for place in (0, 2)]
        keep, held = (None if origin is None else origin.compute()[0] for origin in constants or (None, None))
        if found is None or keep is None or held is None:
            yield f"{name}: the plan has no Where of stored constants behind it"
            continue
        computed = producers.get(found.inputs[1])
        while computed is not None and computed.op == "Cast":
            computed = producers.get(computed.inputs[0])
        if computed is None or computed.name != masked.conv.name:
            yield f"{name}: its mask is behind another operator in the plan"
        if keep.shape[2:] != masked.keep.shape or not np.array_equal(keep.reshape(masked.keep.shape), masked.keep):
            yield f"{name}: the plan masks other positions than the file"
        if not np.array_equal(held.reshape(-1).astype(np.float64), masked.constant.astype(np.float64)):
            yield f"{name}: dropped positions hold something else in the plan than in the file"
