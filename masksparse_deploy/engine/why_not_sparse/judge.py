"""Why an eligible layer of the file has a dense tactic in the engine."""

from collections.abc import Sequence
from dataclasses import dataclass

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.sparse_tactics import Evidence, LayerStatus, TacticTimes
from masksparse_deploy.engine.build_log import BuildLog, TacticTiming
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.engine.why_not_sparse.file_facts import FileLayer
from masksparse_deploy.engine.why_not_sparse.matching import parts

__all__ = ["Judgement", "forbidden", "judge"]

# Sparse tensor cores came with Ampere.
_FIRST_CAPABILITY = (8, 0)
# Types that sparse tactics were seen for.
_SPARSE_TYPES = ("fp16", "int8")
_TYPES = {"float16": "fp16", "int8": "int8", "uint8": "int8", "float32": "fp32", "float64": "fp32", "bfloat16": "bf16"}


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Status and reason of a layer, what it rests on, what can be done, and the builder's times."""

    status: LayerStatus
    reason: str
    evidence: Evidence
    action: str = ""
    times: tuple[TacticTimes, ...] = ()


def forbidden(engine: EngineArtifact) -> Judgement | None:
    """Why no layer at all of the engine can have a sparse tactic, if so."""
    if engine.options.get("sparse_tactics") is False:
        action = "allow them (engine.sparse_tactics) and build again"
        return Judgement(status="not eligible", reason="sparse tactics were forbidden", evidence="builder", action=action)
    capability = engine.device.details.get("compute_capability", "")
    major, _, minor = capability.partition(".")
    if major.isdecimal() and minor.isdecimal() and (int(major), int(minor)) < _FIRST_CAPABILITY:
        reason = f"compute capability {capability}: sparse tensor cores came with 8.0 (Ampere)"
        return Judgement(status="not eligible", reason=reason, evidence="documented", action="use a newer GPU")
    return None


def judge(layer: FileLayer, found: EngineLayer | None, log: BuildLog | None) -> Judgement:
    """Judge an eligible layer whose kernel is not known to be sparse, in an engine that may have sparse tactics.

    Args:
        layer: of the file.
        found: the engine's layer that computes it.
        log: what the builder told.
    """
    if found is None:
        reason = "no layer of the engine names this node: folded away, or merged under another name"
        return Judgement(status="unknown", reason=reason, evidence="builder")
    multiplied = read_tactic(found.tactic).operands or _TYPES.get(layer.row.dtype, layer.row.dtype)
    if multiplied not in _SPARSE_TYPES:
        reason = f"it multiplies {multiplied.upper()}: sparse tactics were seen for FP16 and INT8 only"
        action = "bake with precision fp16 or int8"
        return Judgement(status="not eligible", reason=reason, evidence="rule of thumb", action=action)
    timed = _from_times(found, log) if log is not None else None
    return timed or _from_names(found, log)


def _from_times(found: EngineLayer, log: BuildLog) -> Judgement | None:
    """What the times of the tactics tell; None where they tell nothing."""
    timings = log.timings_of(found.name)
    sparse = [timing for timing in timings if read_tactic(timing.tactic).is_sparse]
    if not sparse:
        # Tactics without a name were timed in another build, or for a layer of the same kind; and a log that has no sparse
        # tactic at all may be of a version that does not write them.
        if not timings or not log.times_sparse or any(not timing.tactic for timing in timings):
            return None
        reason = f"the builder timed {len(timings)} tactics for it, all of them dense: it found no sparse one to try"
        return Judgement(status="not eligible", reason=reason, evidence="builder")
    if found.is_sparse is None:  # whichever was faster alone: it is not known which of them the layer runs
        return None
    dense = [timing for timing in timings if timing not in sparse]
    # the formats of the tactic that was chosen, where they are known
    chosen = {timing.formats for timing in dense if found.tactic_value and timing.tactic_value == found.tactic_value}
    same = [timing for timing in sparse if timing.formats in chosen]
    fastest_sparse = min(same or sparse, key=_time)
    pool = [timing for timing in dense if timing.formats == fastest_sparse.formats] or dense
    if not pool:
        return None
    fastest_dense = min(pool, key=_time)
    times = TacticTimes(sparse_ms=fastest_sparse.time_ms, dense_ms=fastest_dense.time_ms, source="builder")
    reason = (
        f"the builder timed {fastest_sparse.tactic} at {_ms(fastest_sparse)}, {fastest_dense.tactic} at {_ms(fastest_dense)}"
    )
    if fastest_dense.formats != fastest_sparse.formats:
        reason += ", with other formats of tensors"
    if fastest_sparse.time_ms <= fastest_dense.time_ms:
        reason += "; alone the sparse one is no slower, but formats that suit its neighbours made the whole faster"
    return Judgement(status="dense was faster", reason=reason, evidence="builder", times=(times,))


def _from_names(found: EngineLayer, log: BuildLog | None) -> Judgement:
    """What lists of layers tell, or the inspector alone."""
    listed = log is not None and _is_listed(found, log.eligible)
    if log is not None and found.is_sparse is None and _is_listed(found, log.chosen):
        reason = "the builder says that it picked a sparse tactic; the inspector does not name it"
        return Judgement(status="sparse", reason=reason, evidence="builder")
    if found.is_sparse is None and not (log is not None and log.names_chosen):
        reason = "the engine does not tell which tactic it runs, and neither does the builder's log"
        return Judgement(status="unknown", reason=reason, evidence="builder", action="build again with the log kept")
    untold = "whether it timed a sparse one is not told"
    if listed:
        reason = f"the builder found its weights eligible and chose a dense tactic; {untold}"
        return Judgement(status="dense was faster", reason=reason, evidence="builder")
    if found.has_sparse_weights:
        reason = f"the inspector says that its weights allow a sparse tactic, and it has a dense one; {untold}"
        return Judgement(status="dense was faster", reason=reason, evidence="builder")
    if (log is not None and (log.eligible or log.eligible_count == 0)) or found.has_sparse_weights is False:
        reason = "the builder did not find its weights eligible, though the file's are 2:4"
        action = "compare with 'masksparse preflight', which shows the weights that the parser reads"
        return Judgement(status="not eligible", reason=reason, evidence="builder", action=action)
    reason = "it runs a dense tactic; neither inspector nor log tell whether the builder found its weights eligible"
    return Judgement(status="unknown", reason=reason, evidence="builder", action="build again with the log kept")


def _is_listed(found: EngineLayer, names: Sequence[str]) -> bool:
    """Whether the layer is among `names`, which may be of a pass before it was merged with others."""
    own = {found.name, *found.onnx_nodes, *parts(found.name)}
    return any(name == found.name or not own.isdisjoint(parts(name)) for name in names)


def _time(timing: TacticTiming) -> float:
    return timing.time_ms


def _ms(timing: TacticTiming) -> str:
    return f"{timing.time_ms:.4f} ms"
