"""The file that the sparse engine was built from: sparse.onnx itself, or what the rewrite stage made of it."""

from dataclasses import dataclass
from pathlib import Path

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph
from masksparse_deploy.rewrite.verify import differences
from masksparse_deploy.validate.layers import LayerPair

__all__ = ["CHECK_NAME", "BuiltFrom", "check_rewritten", "compared_layers", "read_built_from"]

CHECK_NAME = "rewritten file"
_SHOWN = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class BuiltFrom:
    """What the sparse engine was built from.

    Attributes:
        graph: the file.
        path: where it lies.
        sparse: the sparse file that it was rewritten from; None if it is that file itself.
    """

    graph: Graph
    path: Path
    sparse: Graph | None = None

    @property
    def is_rewritten(self) -> bool:
        """Whether it is not the sparse file itself."""
        return self.sparse is not None


def read_built_from(sparse: Graph, sparse_onnx: Path, report: RewriteReport | None, rewritten_onnx: Path | None) -> BuiltFrom:
    """Follow the digests from the sparse file to the one that its engine must be built from.

    Args:
        sparse: the sparse file.
        sparse_onnx: where it lies.
        report: of the rewrite stage; None where there was none.
        rewritten_onnx: the file that it wrote, if it wrote one.

    Raises:
        ArtifactError: the report is about another sparse file, or the rewritten file is not the one that it names.
        UsageError: a rewritten file without its report, or the other way round, or no such file.
    """
    if report is None:
        if rewritten_onnx is not None:
            raise UsageError(f"{rewritten_onnx} was given without the report of the rewrite: give rewrite.json too")
        return BuiltFrom(graph=sparse, path=sparse_onnx)
    if report.sparse_sha256 != sparse.sha256:
        raise ArtifactError(
            f"the rewrite report is about another sparse ONNX file: recorded digest {report.sparse_sha256}, the file's digest "
            f"is {sparse.sha256}; run 'masksparse rewrite' again"
        )
    if report.rewritten_sha256 is None:
        return BuiltFrom(graph=sparse, path=sparse_onnx)
    if rewritten_onnx is None:
        raise UsageError("the rewrite report names a rewritten file, and none was given: give rewritten.onnx too")
    graph = read_graph(rewritten_onnx)
    if graph.sha256 != report.rewritten_sha256:
        raise ArtifactError(
            f"{rewritten_onnx} is another file than 'masksparse rewrite' wrote: recorded digest {report.rewritten_sha256}, the "
            f"file's digest is {graph.sha256}; run 'masksparse rewrite' again"
        )
    return BuiltFrom(graph=graph, path=rewritten_onnx, sparse=sparse)


def check_rewritten(sparse: Graph, built_from: BuiltFrom) -> Check:
    """Whether the rewritten file is the sparse file's function: every weight and index read back from both, exactly."""
    found = differences(sparse, built_from.graph)
    more = f"; and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return Check(
        name=CHECK_NAME,
        measured=float(len(found)),
        bound=None,
        tolerance=0.0,
        unit="differences",
        verdict="fail" if found else "pass",
        detail="; ".join(found[:_SHOWN]) + more
        if found
        else "read back from both files: the rewritten one leaves out products with zeros and is the same function otherwise",
    )


def compared_layers(changed: tuple[LayerPair, ...], compared: tuple[LayerPair, ...]) -> Check:
    """How many changed layers the engine holds in a form that has no tensor to hold against their bounds, and which."""
    names = [pair.bound.layer for pair in changed if pair not in compared]
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    return Check(
        name="layers in another form",
        measured=float(len(names)),
        bound=None,
        tolerance=None,
        unit="layers",
        verdict="inconclusive",
        detail=(
            f"{len(names)} of {len(changed)} changed layers were not compared one by one: the rewritten file has no tensor "
            f"that is their input or output ({shown}); the check of that file and the comparisons of outputs cover them"
        ),
        decides=False,
    )
