"""Why layers are not sparse, in lines for a terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.sparse_tactics import LayerTactic, SparseTactics

__all__ = ["sparse_tactics_lines", "sparse_tactics_table"]

_COLOURS = {"sparse": "green", "dense was faster": "yellow", "unknown": "yellow"}
# What an evidence is called behind a reason; what the builder tells needs no name.
_MARKS = {"file": "", "builder": "", "documented": " (documented)", "rule of thumb": " (a guess)"}


def sparse_tactics_table(report: SparseTactics) -> Iterable[Table | str]:
    """One row a layer, then contradictions, what else is to be known, and the counts."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "status", "time", "sums", "why"):
        table.add_column(column, justify="right" if column == "time" else "left", overflow="fold")
    for layer in report.layers:
        table.add_row(
            escape(layer.node or layer.weight),
            f"[{_COLOURS[layer.status]}]{layer.status}[/]" if layer.status in _COLOURS else layer.status,
            "-" if layer.median_ms is None else f"{layer.median_ms:.4f} ms",
            _sums(layer),
            escape("; ".join(_why(layer))),
        )
    yield _title(report)
    yield table
    yield from sparse_tactics_lines(report)


def sparse_tactics_lines(report: SparseTactics) -> list[str]:
    """The counts in one line, contradictions, and what else is to be known."""
    counts = ", ".join(f"{count} {status}" for status, count in report.counts.items() if count) or "none"
    lines = [f"{len(report.layers)} layers with weights: {counts}"]
    lines += [f"[bold red]contradiction[/]: {escape(finding)}" for finding in report.findings]
    return lines + [f"[yellow]note[/] {escape(remark)}" for remark in report.remarks]


def _title(report: SparseTactics) -> str:
    version = next(iter(report.versions.values()), "")
    where = [f"{report.backend} {version}".strip(), report.device, report.architecture, report.precision.upper()]
    where += [f"batch {report.batch}"] if report.batch is not None else []
    log = {"none": "no builder's log", "names": "builder's log without times", "times": "builder's log with times"}
    told = [log[report.log]] if report.has_sparse_kernels else []
    return "[bold]why not sparse[/]   " + escape(", ".join(part for part in (*where, *told) if part))


def _sums(layer: LayerTactic) -> str:
    if layer.coarser_sums:
        return f"[yellow]{layer.sums}, dense {layer.dense_sums}[/]"
    return layer.sums or "-"


def _why(layer: LayerTactic) -> Iterable[str]:
    if layer.status == "sparse":
        yield layer.tactic or layer.reason
    else:
        yield layer.reason + _MARKS[layer.evidence]
    for times in layer.times:
        if times.source == "profile" and times.dense_ms is not None:
            yield f"{times.dense_ms:.4f} ms with a dense tactic"
    if layer.action:
        yield layer.action
    yield from (hint.text + _MARKS[hint.evidence] for hint in layer.hints)
