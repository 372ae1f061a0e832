"""The pre-flight's report on the terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.preflight import PreflightLayer, PreflightReport

__all__ = ["preflight_table"]


def preflight_table(report: PreflightReport) -> Iterable[Table | str]:
    """What was refused, one row a layer with weights, and what follows."""
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.versions.items()))
    answer = "[green]parsed[/]" if report.parsed else "[red]not parsed[/]"
    if report.built is not None:
        answer += ", [green]built[/]" if report.built else ", [red]not built[/]"
    yield f"{answer}   {escape(versions)}"
    for error in report.errors:
        where = f"{error.node} ({error.op}): " if error.node or error.op else ""
        yield f"[red]refused[/] {escape(where + error.message)}"
    for warning in report.warnings:
        yield f"[yellow]warning[/] {escape(warning)}"
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("node", "layer", "weight", "type", "as parsed", "against the file", "why"):
        table.add_column(column, overflow="fold")
    for layer in report.layers:
        shape = "x".join(map(str, layer.shape))
        table.add_row(
            escape(layer.node), layer.kind, shape, layer.dtype, _pattern(layer), _agreement(layer), escape(layer.detail)
        )
    yield table
    claimed = [layer for layer in report.layers if layer.claimed]
    kept = sum(layer.conforming is True for layer in claimed)
    apart = sum(layer.agrees is False for layer in report.layers)
    yield (
        f"{len(report.layers)} layers with weights: {kept} of {len(claimed)} claims of sparsity hold as parsed, "
        f"{apart} differ from the file. This checks parsing, not speed: only a build on the GPU shows which kernels run."
    )


def _pattern(layer: PreflightLayer) -> str:
    claim = "claimed " if layer.claimed else ""
    if layer.conforming is None:
        return f"[red]{claim}{layer.pattern}, not shown[/]" if layer.claimed else "not shown"
    if layer.conforming:
        return f"[green]{claim}{layer.pattern}[/]"
    if not layer.group_count:
        return f"[red]{claim}{layer.pattern}, broken[/]" if layer.claimed else "dense"
    broken = f"{layer.violation_count:,} of {layer.group_count:,} groups keep more than {layer.pattern}"
    return f"[red]claimed, but {broken}[/]" if layer.claimed else "dense"


def _agreement(layer: PreflightLayer) -> str:
    return {True: "[green]same[/]", False: "[red]differs[/]", None: "-"}[layer.agrees]
