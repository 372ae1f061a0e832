"""From files to the report that says of every layer whether it runs a sparse tactic, and why not."""

from pathlib import Path

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.sparse_tactics import SparseTactics
from masksparse_deploy.core.artifacts.timing import ProfileReport

__all__ = ["WHY_NOT_SPARSE", "explain_files"]

WHY_NOT_SPARSE = "why_not_sparse.json"


def explain_files(onnx: Path, engine: Path, *, dense: Path | None = None, profile: Path | None = None) -> SparseTactics:
    """Read what belongs together and explain it; the builder's log is taken from beside the engine.

    Args:
        onnx: the file that the engine was built from.
        engine: its engine.json.
        dense: engine.json of the dense file.
        profile: profile.json of the two engines.

    Raises:
        UsageError: one of them is not there.
        ArtifactError: one of them is damaged, or they do not belong together.
    """
    from masksparse_deploy.bake.lint import lint_graph
    from masksparse_deploy.engine.build_log import parse_log
    from masksparse_deploy.engine.why_not_sparse.explain import explain
    from masksparse_deploy.graph.reader import read_graph

    built = EngineArtifact.read(engine)
    graph = read_graph(onnx)
    log = engine.parent / Path(built.build_log).name
    return explain(
        graph,
        lint_graph(graph, name=str(onnx)),
        built,
        # an engine that was moved without its log is explained without it, and the report says that there was none
        log=parse_log(log.read_text(encoding="utf-8", errors="replace")) if built.build_log and log.is_file() else None,
        dense=None if dense is None else EngineArtifact.read(dense),
        profile=None if profile is None else ProfileReport.read(profile),
    )
