"""The plot of speedup against batch size, and a page of its own for it."""

from pathlib import Path
from typing import Any

from masksparse_deploy.core.artifacts.sweeping import SweepPoint, SweepReport
from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.optional import require
from masksparse_deploy.report.figures import BASELINE, BOUND, DENSE, SPARSE, WHOLE, Plot, plain_figure
from masksparse_deploy.report.formats import TIMES

__all__ = ["sweep_plot", "write_sweep_page"]

_COLOURS = (SPARSE, BASELINE, WHOLE, DENSE)


def sweep_plot(report: SweepReport) -> Plot:
    """One line a size of images, with the interval of every point; points whose figures must not be used are hollow."""
    sizes = sorted({(point.height, point.width) for point in report.points})
    data = []
    for index, (height, width) in enumerate(sizes):
        points = [point for point in report.points if (point.height, point.width) == (height, width)]
        data.append(_line(points, f"{height}{TIMES}{width}", _COLOURS[index % len(_COLOURS)]))
    batches = sorted({point.batch for point in report.points})
    axis = {"type": "log", "tickvals": batches, "ticktext": [str(batch) for batch in batches]}
    figure = plain_figure(data, 340, x_title="images in a batch", x=axis)
    figure["layout"]["yaxis"] = {
        **figure["layout"]["xaxis"],
        "type": "linear",
        "title": {"text": "times the dense speed", "standoff": 12},
        "ticksuffix": TIMES,
        "tickvals": None,
        "ticktext": None,
    }
    figure["layout"]["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    figure["layout"]["showlegend"] = len(sizes) > 1
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "y0": 1,
            "y1": 1,
            "line": {"color": BOUND, "width": 2, "dash": "dot"},
        }
    ]
    speedups = ", ".join(
        f"batch {point.batch} of {point.height}x{point.width}: {point.speedup.ratio:.2f}" for point in report.points
    )
    return Plot(
        "sweep",
        f"Speedup at {len(report.points)} points: {speedups}.",
        "Dotted: the same speed. Bars are confidence intervals; figures of hollow points must not be used.",
        figure,
    )


def write_sweep_page(path: Path, report: SweepReport, title: str) -> None:
    """The plot as an HTML page that holds everything it shows.

    Raises:
        MachineError: plotly is not installed.
        OutputError: the file cannot be written.
    """
    graph_objects = require("plotly.graph_objects", needed_for="the plot of speedup against batch size")
    figure = graph_objects.Figure(sweep_plot(report).figure)
    where = ", ".join(part for part in (report.device, report.architecture) if part)
    figure.update_layout(title=f"{title}: {report.backend} on {where}", margin={"t": 70}, height=480)
    page: str = figure.to_html(include_plotlyjs=True, div_id="sweep", config={"displayModeBar": False})
    write_atomic(path, page.encode())


def _line(points: list[SweepPoint], name: str, colour: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [point.batch for point in points],
        "y": [point.speedup.ratio for point in points],
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [point.speedup.interval.high - point.speedup.ratio for point in points],
            "arrayminus": [point.speedup.ratio - point.speedup.interval.low for point in points],
            "color": colour,
            "thickness": 2,
        },
        "line": {"color": colour, "width": 2},
        "marker": {
            "color": colour,
            "size": 11,
            "symbol": ["circle-open" if point.invalid_because else "circle" for point in points],
        },
        "hovertemplate": "batch %{x}: %{y:.3g}" + TIMES + "<extra>" + name + "</extra>",
    }
