"""Did the sparsity survive? Every masked layer at the four checkpoints from the module to the engine."""

from collections.abc import Iterator, Mapping

import numpy as np

from masksparse_deploy.core.artifacts.baking import BakedLayer, BakeReport
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.survival import STAGES, LayerSurvival, StageState, SurvivalState
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.groups import count_kept
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.validate.plan_layers import layer_in_plan, plan_layers

__all__ = ["CHECK_NAME", "check_survival", "survival"]

CHECK_NAME = "pattern of the sparse plan"


def survival(sparse: Graph, plan: Graph | None, engine: EngineArtifact, baked: BakeReport | None) -> tuple[LayerSurvival, ...]:
    """Follow every masked layer: those that the bake report names, and those that the file annotates.

    The module and its export are taken from the bake report, which counted their groups; the converted file and the engine
    are looked at here, whatever was recorded about them.

    Args:
        sparse: the ONNX file that the engine was built from.
        plan: the engine's plan where it can be read back, else None.
        engine: what is known about the engine.
        baked: the report of the bake stage; None leaves the first two checkpoints unchecked.

    Raises:
        ArtifactError: the bake report is about another file.
    """
    if baked is not None and baked.sparse_sha256 != sparse.sha256:
        raise ArtifactError(
            f"the bake report is about another sparse ONNX file: recorded digest {baked.sparse_sha256}, the file's digest is "
            f"{sparse.sha256}; run 'masksparse bake' again"
        )
    return tuple(_survivals(sparse, plan, engine, baked))


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


def _survivals(sparse: Graph, plan: Graph | None, engine: EngineArtifact, baked: BakeReport | None) -> Iterator[LayerSurvival]:
    in_file = weighted_layers(sparse)
    in_plan = None if plan is None else plan_layers(plan)
    recorded = {entry.node: entry for entry in baked.layers} if baked is not None else {}
    for layer in in_file:
        entry = recorded.pop(layer.node.name, None)
        claim = layer.node.metadata.get(PATTERN, entry.pattern if entry is not None else None)
        if claim is None:
            continue
        pattern = NMPattern.parse(claim)
        yield _followed(
            layer.node.name if entry is None else entry.layer,
            pattern,
            entry,
            converted=_counted(layer, pattern),
            in_engine=_unseen(layer, engine) if in_plan is None else _in_plan(layer, pattern, in_plan),
            runs_sparse=_runs_sparse(layer, engine),
        )
    for node, entry in recorded.items():
        gone = StageState(state="missing", why=f"no operator {node} with a weight is in the file")
        in_engine = StageState(state="not checked", why="it is not in the file that the engine was built from")
        pattern = NMPattern.parse(entry.pattern)
        yield _followed(entry.layer, pattern, entry, converted=gone, in_engine=in_engine, runs_sparse=False)


def _followed(
    name: str,
    pattern: NMPattern,
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


def _in_plan(layer: WeightedLayer, pattern: NMPattern, in_plan: tuple[WeightedLayer, ...]) -> StageState:
    found = layer_in_plan(layer, in_plan)
    if found is None or found.weight.shape != layer.weight.shape:
        return StageState(
            state="missing", why=f"its weight {layer.stored_name} is not in the plan with the shape {layer.weight.shape}"
        )
    return _counted(found, pattern)


def _unseen(layer: WeightedLayer, engine: EngineArtifact) -> StageState:
    """What can be said of a layer of an engine that does not give its weights back."""
    kernel = _kernel(layer, engine)
    if kernel is None or kernel.is_sparse is None:
        runs = "nor which kernel it runs"
    else:
        runs = f"it runs the {'sparse' if kernel.is_sparse else 'dense'} tactic {kernel.tactic}"
    return StageState(state="not checked", why=f"{engine.backend} does not show the weights; {runs}")


def _runs_sparse(layer: WeightedLayer, engine: EngineArtifact) -> bool | None:
    kernel = _kernel(layer, engine)
    if kernel is not None:
        return kernel.is_sparse
    # Which entry computes the layer does not matter where every entry is known to be dense.
    return False if engine.layers and all(entry.is_sparse is False for entry in engine.layers) else None


def _kernel(layer: WeightedLayer, engine: EngineArtifact) -> EngineLayer | None:
    return next((entry for entry in engine.layers if layer.node.name in entry.onnx_nodes), None)


def _counted(layer: WeightedLayer, pattern: NMPattern) -> StageState:
    kept = [count_kept(layer.weight != 0, axis=axis, size=pattern.m) for axis in layer.group_axes(pattern)]
    return _judged(sum(int(np.count_nonzero(part > pattern.n)) for part in kept), sum(part.size for part in kept))


def _judged(violation_count: int, group_count: int) -> StageState:
    state: SurvivalState = "broken" if violation_count else "conforming"
    return StageState(state=state, violation_count=violation_count, group_count=group_count)


def _loss(layer: LayerSurvival) -> str:
    stage = layer.lost_at
    assert stage is not None, "only lost layers are told of"
    found = layer.at(stage)
    if found.state == "missing":
        return f"{layer.layer}: first lost at the stage {stage}: {found.why}"
    pattern = NMPattern.parse(layer.pattern)
    groups = f"{found.violation_count:,} of {found.group_count:,} groups"
    along = " along input or output channels" if pattern.transposable else ""
    return f"{layer.layer}: first lost at the stage {stage}: {groups} keep more than {pattern.n} of {pattern.m} weights{along}"


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
