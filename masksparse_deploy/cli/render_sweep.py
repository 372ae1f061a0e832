"""What a sweep found, in lines for a terminal."""

from collections.abc import Iterable

from rich.markup import escape
from rich.table import Table

from masksparse_deploy.core.artifacts.sweeping import SweepReport

__all__ = ["sweep_table"]


def sweep_table(report: SweepReport) -> Iterable[Table | str]:
    """One row a point, then why figures must not be used."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    columns = ["images", "batch", "dense ms", "sparse ms", "speedup", "interval", "by sparse tactics", "with transfers", ""]
    shown = [any(point.ratios for point in report.points), any(point.end_to_end for point in report.points)]
    hidden = {name for name, show in zip(("by sparse tactics", "with transfers"), shown, strict=True) if not show}
    for column in columns:
        if column not in hidden:
            table.add_column(column, justify="left" if column in ("images", "") else "right")
    for point in report.points:
        alone = next((ratio for ratio in point.ratios if (ratio.slower, ratio.faster) == ("forbidden", "sparse")), None)
        interval = point.speedup.interval
        cells = {
            "images": f"{point.height}x{point.width}",
            "batch": str(point.batch),
            "dense ms": f"{point.dense_ms:.3f}",
            "sparse ms": f"{point.sparse_ms:.3f}",
            "speedup": f"{point.speedup.ratio:.2f}x",
            "interval": escape(f"[{interval.low:.2f}, {interval.high:.2f}]"),
            "by sparse tactics": "" if alone is None else f"{alone.ratio:.2f}x",
            "with transfers": "" if point.end_to_end is None else f"{point.end_to_end.ratio:.2f}x",
            "": "[yellow]invalid[/]" if point.invalid_because else "",
        }
        table.add_row(*(cell for name, cell in cells.items() if name not in hidden))
    yield table
    confidences = sorted({f"{100 * point.speedup.interval.confidence:.3g}" for point in report.points})
    where = ", ".join(part for part in (report.device, report.architecture, report.clock) if part)
    yield f"{report.backend} on {escape(where)}, intervals of {' and '.join(confidences)} % confidence"
    for point in report.points:
        where = f"batch {point.batch} of {point.height}x{point.width}"
        yield from (f"[yellow]invalid:[/] {where}: {escape(reason)}" for reason in point.invalid_because)
