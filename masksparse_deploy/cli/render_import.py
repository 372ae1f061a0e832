"""What an import found, in lines for a terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.foreign import ImportReport

__all__ = ["import_table"]


def import_table(report: ImportReport) -> Iterable[Table | str]:
    """One row a layer, then the source, the share that is usable and the Amdahl limit."""
    total = sum(layer.mac_count for layer in report.layers)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "weight", "MACs", "kept", "usable", "why"):
        table.add_column(column, justify="right" if column in ("MACs", "kept") else "left", overflow="fold")
    for layer in report.layers:
        table.add_row(
            escape(layer.name),
            "x".join(map(str, layer.shape)),
            f"{layer.mac_count / total:.1%}" if total else "?",
            f"{layer.density:.1%}",
            "[green]yes[/]" if layer.usable else "[yellow]no[/]",
            escape(layer.why),
        )
    usable = [layer for layer in report.layers if layer.usable]
    share = sum(layer.mac_count for layer in usable) / total if total else 0.0
    yield table
    yield (
        f"source: {report.tool}. Usable by sparse kernels: {len(usable)} of {len(report.layers)} layers, {share:.1%} of MACs. "
        f"If every usable layer ran at its ideal speed: {report.amdahl_limit:.2f}x at most."
    )
    if not usable:
        yield "Nothing to take over: no masks were written. 'masksparse learn' finds masks for weights.safetensors."
