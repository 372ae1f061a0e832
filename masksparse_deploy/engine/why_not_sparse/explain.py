"""Which layers of a file run a sparse tactic in an engine, and why the others do not."""

from typing import Literal

from masksparse_deploy.core.artifacts.baking import LintReport
from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.sparse_tactics import LayerTactic, SparseTactics
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.build_log import BuildLog
from masksparse_deploy.engine.protocol import WITHOUT_SPARSE_KERNELS
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.engine.why_not_sparse.file_facts import FileLayer, file_layers
from masksparse_deploy.engine.why_not_sparse.findings import find_contradictions, remarks
from masksparse_deploy.engine.why_not_sparse.hints import hints
from masksparse_deploy.engine.why_not_sparse.judge import Judgement, forbidden, judge
from masksparse_deploy.engine.why_not_sparse.matching import carriers
from masksparse_deploy.engine.why_not_sparse.twins import find_twin
from masksparse_deploy.graph.model import Graph

__all__ = ["explain"]

# Backends that tell their kernels.
_TELLING = ("tensorrt",)


def explain(
    graph: Graph,
    lint: LintReport,
    engine: EngineArtifact,
    *,
    log: BuildLog | None = None,
    dense: EngineArtifact | None = None,
    profile: ProfileReport | None = None,
) -> SparseTactics:
    """Say of every layer with weights whether it runs a sparse tactic, and if not, why.

    Args:
        graph: the ONNX file that the engine was built from.
        lint: the linter's report on it.
        engine: what was built.
        log: what the builder told.
        dense: the engine of the dense file, whose tactics sparse ones are compared with.
        profile: times of both engines, layer by layer where the session could tell.

    Raises:
        ArtifactError: they do not belong together.
    """
    _require_one_origin(graph, lint, engine, profile)
    has_kernels = True if engine.backend in _TELLING else False if engine.backend in WITHOUT_SPARSE_KERNELS else None
    of_file = tuple(file_layers(graph, lint))
    times = profile.layers if profile is not None else ()
    rows, carried = [], []
    for layer in of_file:
        found = _carrier(layer, engine)
        judgement = _judgement(layer, found, engine, log, has_kernels)
        twin = find_twin(layer.names, found, is_sparse=judgement.status == "sparse", dense=dense, layers=times)
        tactic = found.tactic if found is not None else ""
        sparse = judgement.status == "sparse"
        asks_why = layer.eligible and has_kernels is True and not sparse
        carried.append(found)
        rows.append(
            LayerTactic(
                **layer.row.model_dump(include={"node", "op", "where", "weight", "shape", "dtype"}),
                eligible=layer.eligible,
                status=judgement.status,
                reason=judgement.reason,
                evidence=judgement.evidence,
                action=judgement.action,
                hints=tuple(hints(layer, found, engine)) if asks_why else (),
                engine_layer=found.name if found is not None else "",
                tactic=tactic,
                sums=read_tactic(tactic).sums,
                dense_tactic=twin.tactic,
                dense_sums=read_tactic(twin.tactic).sums,
                coarser_sums=sparse and twin.is_finer_than(tactic),
                median_ms=twin.median_ms,
                share=twin.share,
                times=(*twin.times, *judgement.times),
            )
        )
    return SparseTactics(
        source_sha256=graph.sha256,
        engine_sha256=engine.digest,
        backend=engine.backend,
        versions=engine.versions,
        device=engine.device.name,
        architecture=engine.device.architecture,
        precision=engine.precision,
        batch=_batch(engine),
        has_sparse_kernels=has_kernels,
        log=_kind_of(log),
        layers=tuple(rows),
        findings=tuple(find_contradictions(graph, of_file, rows, carried, engine, log)),
        remarks=tuple(remarks(rows, has_kernels=has_kernels, has_dense=dense is not None)),
    )


def _judgement(
    layer: FileLayer, found: EngineLayer | None, engine: EngineArtifact, log: BuildLog | None, has_kernels: bool | None
) -> Judgement:
    if found is not None and found.is_sparse:
        return Judgement(status="sparse", reason="the tactic's name tells of sparse math", evidence="builder")
    if not layer.eligible:
        return Judgement(status="not eligible", reason=layer.reason, evidence="file", action=layer.action)
    if has_kernels is False:
        reason = "this runtime has no 2:4 kernels; the file's layer is eligible"
        floating = layer.row.dtype in ("float32", "float64")
        action = f"build{' a file of FP16 or INT8' if floating else ''} with TensorRT on an NVIDIA GPU (Ampere or newer)"
        return Judgement(status="not eligible", reason=reason, evidence="documented", action=action)
    if has_kernels is None:
        reason = f"{engine.backend} does not tell which kernels it runs"
        return Judgement(status="unknown", reason=reason, evidence="documented", action="build with the backend tensorrt")
    return forbidden(engine) or judge(layer, found, log)


def _carrier(layer: FileLayer, engine: EngineArtifact) -> EngineLayer | None:
    """The engine's layer that multiplies by the weights: of several that a node was split into, the one that says so."""
    found = carriers(layer.names, engine.layers)

    def rank(candidate: EngineLayer) -> tuple[bool, int, bool]:
        return bool(candidate.is_sparse), candidate.weight_count or 0, bool(read_tactic(candidate.tactic).kind)

    return max(found, key=rank, default=None)


def _require_one_origin(graph: Graph, lint: LintReport, engine: EngineArtifact, profile: ProfileReport | None) -> None:
    if engine.source_sha256 != graph.sha256:
        raise ArtifactError(
            f"the engine was built from another file (digest {engine.source_sha256}) than the one given ({graph.sha256}); "
            "give the ONNX file that it was built from, or build it again"
        )
    if lint.file_sha256 != graph.sha256:
        raise ArtifactError(
            f"the linter's report is of another file (digest {lint.file_sha256}) than the one given ({graph.sha256}); "
            "lint the file again"
        )
    if profile is not None and profile.sparse_engine_sha256 != engine.digest:
        raise ArtifactError(
            f"the times are of another engine (digest {profile.sparse_engine_sha256}) than the one given ({engine.digest}); "
            "run 'masksparse profile' again"
        )


def _batch(engine: EngineArtifact) -> int | None:
    batch = engine.options.get("batch")
    return batch if isinstance(batch, int) else None


def _kind_of(log: BuildLog | None) -> Literal["none", "names", "times"]:
    if log is None:
        return "none"
    return "times" if log.timings else "names"
