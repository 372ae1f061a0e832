"""What the rewrite stage says, in lines for a terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.rewriting import LayerRewrite, RewriteReport

__all__ = ["rewrite_lines", "rewrite_table"]


def rewrite_table(report: RewriteReport) -> Iterable[Table | str]:
    """One row a layer, then the network as a whole."""
    numbers = ("density", "dense ms", "rewritten ms", "speedup", "ideal")
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("layer", "pattern", "form", *numbers, "why"):
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for layer in report.layers:
        table.add_row(
            escape(layer.node),
            escape(layer.pattern),
            layer.form if layer.form == "dense" else f"[green]{layer.form}[/]",
            f"{layer.density:.0%}",
            *_times(layer),
            "-" if layer.speedup is None else f"{layer.speedup:.2f}x",
            f"{layer.ideal:.2f}x",
            escape(layer.reason),
        )
    if report.layers:
        yield table
    yield from rewrite_lines(report)


def rewrite_lines(report: RewriteReport) -> list[str]:
    """How many layers were rewritten, what the network gains by it, and the remarks."""
    changed = sum(layer.form != "dense" for layer in report.layers)
    where = f"batch {report.batch}, {_threads(report.threads)}, {escape(report.device)}"
    if report.rewritten_sha256 is None:
        head = "no rewritten.onnx: engines are built from the sparse file" if report.layers else "no rewritten.onnx"
        if any(layer.times for layer in report.layers):
            head = f"no layer gets faster in this network, {len(report.layers)} tried; {head}"
    else:
        head = f"rewritten.onnx   {changed} of {len(report.layers)} layers rewritten"
    if report.speedup is not None:
        head += f"   speedup {report.speedup:.2f}x"
        if report.interval is not None:
            head += escape(f" [{report.interval.low:.2f}, {report.interval.high:.2f}]")
        head += f" over the sparse file   {where}"
    return [head, *(f"[yellow]note[/] {escape(remark)}" for remark in report.remarks)]


def _times(layer: LayerRewrite) -> tuple[str, str]:
    """Milliseconds of the dense form and of the fastest other one."""
    dense = next((timed.median_ms for timed in layer.times if timed.form == "dense"), None)
    others = [timed.median_ms for timed in layer.times if timed.form != "dense"]
    return "-" if dense is None else f"{dense:.3f}", f"{min(others):.3f}" if others else "-"


def _threads(count: int) -> str:
    return "all cores" if count == 0 else f"{count} thread{'s' if count > 1 else ''}"
