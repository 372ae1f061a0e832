"""Contradictions between the file, the engine and the builder's log; and what concerns all layers."""

import re
from collections.abc import Iterator, Sequence

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.sparse_tactics import LayerTactic
from masksparse_deploy.engine.build_log import BuildLog
from masksparse_deploy.engine.why_not_sparse.file_facts import FileLayer
from masksparse_deploy.engine.why_not_sparse.matching import aliases, parts
from masksparse_deploy.graph.model import Graph

__all__ = ["find_contradictions", "remarks"]

_SHOWN = 3
# Names that the builder invents.
_MADE_UP = re.compile(r"_myl\d|ForeignNode\[|\(Unnamed Layer|^PWN\(")


def find_contradictions(
    graph: Graph,
    of_file: Sequence[FileLayer],
    rows: Sequence[LayerTactic],
    carried: Sequence[EngineLayer | None],
    engine: EngineArtifact,
    log: BuildLog | None,
) -> Iterator[str]:
    """What cannot be true at once, in words.

    Args:
        graph: the file.
        of_file: its layers.
        rows: what was made of them, in the same order.
        carried: the engine's layers that compute them, likewise.
        engine: what those are of.
        log: what the builder told.
    """
    for layer, row, found in zip(of_file, rows, carried, strict=True):
        if row.status == "sparse" and layer.violation_count:
            yield (
                f"{row.node or row.weight} runs the sparse tactic {row.tactic}, but {layer.violation_count:,} of "
                f"{layer.group_count:,} groups in the file keep more than 2 of 4 weights: the engine holds other weights than "
                "the file (built with sparsity forced?)"
            )
        elif found is not None and log is not None and found.is_sparse is False and found.name in log.chosen:
            yield (
                f"the builder's log says that {found.name} got a sparse tactic, the inspector names {found.tactic}: "
                "log and engine are of different builds?"
            )
    if log is not None:
        yield from _foreign_names(graph, engine, log)


def remarks(rows: Sequence[LayerTactic], *, has_kernels: bool | None, has_dense: bool) -> Iterator[str]:
    """What a user should know besides.

    Args:
        rows: the layers.
        has_kernels: whether the runtime has 2:4 kernels; None where it does not tell.
        has_dense: whether the dense file's engine is known.
    """
    if has_kernels is False:
        count = sum(row.eligible for row in rows)
        yield f"this runtime has no 2:4 kernels: it multiplies the zeros too; {count} of {len(rows)} layers would be eligible"
    coarser = [row.node for row in rows if row.coarser_sums]
    if coarser:
        yield (
            f"{_listed(coarser)}: the sparse tactic adds up in FP16 where the dense one does in FP32, so that it rounds more; "
            "'masksparse validate' takes the tactic's sums into its bounds"
        )
    halves = [row.node for row in rows if row.status == "sparse" and row.sums == "fp16" and not row.dense_sums]
    if halves:
        why = "the dense tactics do not tell in what they add up" if has_dense else "give the dense engine to compare them"
        yield f"{_listed(halves)}: sums in FP16, perhaps coarser than the dense ones; {why}"


def _foreign_names(graph: Graph, engine: EngineArtifact, log: BuildLog) -> Iterator[str]:
    """Layers in the log that have nothing of the file or the engine in them."""
    known = {name for node in graph.nodes for name in aliases(node)} | set(graph.constants)
    own = {layer.name for layer in engine.layers}
    named = [name for name in dict.fromkeys((*log.eligible, *log.chosen)) if name not in own and not _MADE_UP.search(name)]
    foreign = [name for name in named if known.isdisjoint(parts(name))]
    if foreign:
        some = f"the builder's log names {len(foreign)} layers that the file does not have ({_listed(foreign)})"
        yield f"{some}: it is of another build"


def _listed(names: Sequence[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + rest
