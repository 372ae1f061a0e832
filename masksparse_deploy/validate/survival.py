"""Did the sparsity survive? Every masked layer at the four checkpoints from the module to the engine."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern, group_limit, parse_pattern
from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.survival import STAGES, LayerSurvival, StageState, SurvivalState
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.groups import count_kept
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.validate.plan_layers import layer_in_plan, plan_layers

__all__ = ["CHECK_NAME", "check_survival", "survival"]

CHECK_NAME = "pattern of the sparse plan"


def survival(
    sparse: Graph,
    plan: Graph | None,
    engine: EngineArtifact,
    baked: BakeReport | None,
    *,
    rewritten: Graph | None = None,
) -> tuple[LayerSurvival, ...]:
    """Follow every masked layer: those that the bake report names, and those that the file annotates.

    The module and its export are taken from the bake report, which counted their groups; the converted file and the engine
    are looked at here, whatever was recorded about them.

    Args:
        sparse: the ONNX file that carries the masks.
        plan: the engine's plan where it can be read back, else None.
        engine: what is known about the engine.
        baked: the report of the bake stage; None leaves the first two checkpoints unchecked.
        rewritten: the file that the engine was built from, where it is not `sparse` itself but what was rewritten from it.

    Raises:
        ArtifactError: the bake report is about another file.
    """
    if baked is not None and baked.sparse_sha256 != sparse.sha256:
        raise ArtifactError(
            f"the bake report is about another sparse ONNX file: recorded digest {baked.sparse_sha256}, the file's digest is "
            f"{sparse.sha256}; run 'masksparse bake' again"
        )
    return tuple(_survivals(sparse, plan, engine, baked, rewritten))


def check_survival(layers: tuple[LayerSurvival, ...], engine: EngineArtifact) -> Check:
    """Whether no masked layer was lost on the way into the engine; a lost one is named with the first stage it was lost at."""
    lost = [layer for layer in layers if layer.lost_at is not None]
    if not layers:
        detail = "neither the sparse ONNX file nor a bake report marks a layer as masked, so nothing could conform"
        return _check(None, "inconclusive", detail)
    if lost:
        return _check(float(len(lost)), "fail", "; ".join(map(_loss, lost)))
    unchecked = [layer for layer in layers if layer.engine.state == "not checked"]
    if unchecked:
        detail = (
            f"no masked layer is lost up to the ONNX file; {len(unchecked)} of {len(layers)} cannot be followed into an engine "
            f"of the backend {engine.backend}: the chain of digests shows which file it was built from, and the comparisons of "
            "outputs show what it computes"
        )
        return _check(None, "inconclusive", detail, decides=False)
    return _check(0.0, "pass", f"read back from the plan: all {len(layers)} masked layers keep their pattern")


def _survivals(
    sparse: Graph, plan: Graph | None, engine: EngineArtifact, baked: BakeReport | None, rewritten: Graph | None
) -> Iterator[LayerSurvival]:
    in_file = weighted_layers(sparse)
    built_from = {layer.node.name: layer for layer in (in_file if rewritten is None else weighted_layers(rewritten))}
    in_plan = None if plan is None else plan_layers(plan)
    # a layer held as rows has no operator of its name, and its matrix products multiply zeros
    operators = {node.name for node in (sparse if rewritten is None else rewritten).nodes}
    recorded = {entry.node: entry for entry in baked.layers} if baked is not None else {}
    for layer in in_file:
        entry = recorded.pop(layer.node.name, None)
        claim = layer.node.metadata.get(PATTERN, entry.pattern if entry is not None else None)
        if claim is None:
            continue
        pattern = parse_pattern(claim)
        deployed = built_from.get(layer.node.name)
        yield _followed(
            layer.node.name if entry is None else entry.layer,
            pattern,
            entry,
            converted=_counted(layer, pattern),
            in_engine=_unseen(layer, engine) if in_plan is None else _in_plan(layer, deployed, pattern, in_plan),
            runs_sparse=_runs_sparse(layer, deployed, engine) if layer.node.name in operators else False,
        )
    for node, entry in recorded.items():
        gone = StageState(state="missing", why=f"no operator {node} with a weight is in the file")
        in_engine = StageState(state="not checked", why="it is not in the file that the engine was built from")
        pattern = parse_pattern(entry.pattern)
        yield _followed(entry.layer, pattern, entry, converted=gone, in_engine=in_engine, runs_sparse=False)


def _followed(
    name: str,
    pattern: Pattern,
    entry: BakedLayer | None,
    *,
    converted: StageState,
    in_engine: StageState,
    runs_sparse: bool | None,
) -> LayerSurvival:
    states = {**_recorded(entry), "converted": converted, "engine": in_engine}
    lost_at = next((stage for stage in STAGES if states[stage].state in ("broken", "missing")), None)
    return LayerSurvival(layer=name, pattern=str(pattern), lost_at=lost_at, runs_sparse=runs_sparse, **states)


def _recorded(entry: BakedLayer | None) -> Mapping[str, StageState]:
    """The checkpoints that only the bake stage can count."""
    counted = {checkpoint.stage: checkpoint for checkpoint in entry.checkpoints} if entry is not None else {}
    why = "no bake report was given for it" if entry is None else "the bake report has no count for this stage"
    states = {}
    for stage in ("module", "onnx"):
        found = counted.get(stage)
        states[stage] = (
            StageState(state="not checked", why=why) if found is None else _judged(found.violation_count, found.group_count)
        )
    return states


def _in_plan(
    layer: WeightedLayer, deployed: WeightedLayer | None, pattern: Pattern, in_plan: tuple[WeightedLayer, ...]
) -> StageState:
    """What the plan holds of a layer; `deployed` is the layer of that name in the file that the engine was built from."""
    if deployed is None or deployed.node.op != layer.node.op:
        why = "it is computed by other operators: see the checks of the rewritten file and of the plan's weights"
        return StageState(state="not checked", why=why)
    if deployed.weight.shape[:1] < layer.weight.shape[:1]:  # so that what is left of a block cannot be told
        why = "it computes only output channels that are read: see the checks of the rewritten file and of the plan's weights"
        return StageState(state="not checked", why=why)
    found = layer_in_plan(deployed, in_plan)
    if found is None or found.weight.shape != deployed.weight.shape:
        why = f"its weight {deployed.stored_name} is not in the plan with the shape {deployed.weight.shape}"
        return StageState(state="missing", why=why)
    if isinstance(pattern, BlockPattern) and deployed.weight.shape != layer.weight.shape:
        # the columns of a group are gathered channels: those of a block that holds anything are at most the ones kept
        return _counted_blocks(found.weight, pattern, layer.weight.shape[1])
    return _counted(found, pattern)


def _unseen(layer: WeightedLayer, engine: EngineArtifact) -> StageState:
    """What can be said of a layer of an engine that does not give its weights back."""
    kernel = _kernel(layer, engine)
    if kernel is None or kernel.is_sparse is None:
        runs = "nor which kernel it runs"
    else:
        runs = f"it runs the {'sparse' if kernel.is_sparse else 'dense'} tactic {kernel.tactic}"
    return StageState(state="not checked", why=f"{engine.backend} does not show the weights; {runs}")


def _runs_sparse(layer: WeightedLayer, deployed: WeightedLayer | None, engine: EngineArtifact) -> bool | None:
    if deployed is None or deployed.weight.size < layer.weight.size:
        return True  # rewritten: what the pattern drops is not in the engine at all
    kernel = _kernel(layer, engine)
    if kernel is not None:
        return kernel.is_sparse
    # Which entry computes the layer does not matter where every entry is known to be dense.
    return False if engine.layers and all(entry.is_sparse is False for entry in engine.layers) else None


def _kernel(layer: WeightedLayer, engine: EngineArtifact) -> EngineLayer | None:
    return next((entry for entry in engine.layers if layer.node.name in entry.onnx_nodes), None)


def _counted(layer: WeightedLayer, pattern: Pattern) -> StageState:
    if isinstance(pattern, BlockPattern):
        weight = np.moveaxis(layer.weight, (layer.output_axis, layer.group_axis), (0, 1)) if layer.weight.ndim > 1 else None
        if weight is None or weight.shape[0] % pattern.n or weight.size == 0:
            why = f"a weight {layer.weight.shape} has no blocks of {pattern.n} output channels"
            return StageState(state="broken", violation_count=1, group_count=1, why=why)
        return _counted_blocks(weight, pattern, weight.shape[1])
    kept = [count_kept(layer.weight != 0, axis=axis, size=pattern.m) for axis in layer.group_axes(pattern)]
    return _judged(sum(int(np.count_nonzero(part > pattern.n)) for part in kept), sum(part.size for part in kept))


def _counted_blocks(weight: npt.NDArray[Any], pattern: BlockPattern, in_channels: int) -> StageState:
    """Count the blocks of a weight, output channels first, that may hold only some of the layer's input channels."""
    used = pattern.blocks(weight != 0)
    counts = used.sum(axis=1) if pattern.uniform else used.sum(keepdims=True)
    kept = pattern.kept_channels(in_channels) if pattern.uniform else pattern.kept_blocks(len(weight), in_channels)
    return _judged(int(np.count_nonzero(counts > kept)), counts.size)


def _judged(violation_count: int, group_count: int) -> StageState:
    state: SurvivalState = "broken" if violation_count else "conforming"
    return StageState(state=state, violation_count=violation_count, group_count=group_count)


def _loss(layer: LayerSurvival) -> str:
    stage = layer.lost_at
    assert stage is not None, "only lost layers are told of"
    found = layer.at(stage)
    if found.why:
        return f"{layer.layer}: first lost at the stage {stage}: {found.why}"
    pattern = parse_pattern(layer.pattern)
    limit = f"{pattern} allows" if isinstance(pattern, BlockPattern) else group_limit(pattern, 0, 0)
    groups = f"{found.violation_count:,} of {found.group_count:,} groups"
    return f"{layer.layer}: first lost at the stage {stage}: {groups} keep more than {limit}"


def _check(measured: float | None, verdict: Verdict, detail: str, *, decides: bool = True) -> Check:
    return Check(
        name=CHECK_NAME,
        measured=measured,
        bound=None,
        tolerance=0.0,
        unit="layers",
        verdict=verdict,
        detail=detail,
        decides=decides,
    )
