"""What the report's plots are made of: Plotly figures in plain JSON values, the same bytes for the same artifacts.

Text and grid take their colours from the style sheet, so that they follow the reader's light or dark mode; the colours here
are readable on both.
"""

from dataclasses import dataclass
from typing import Any

__all__ = [
    "BASELINE",
    "BOUND",
    "DENSE",
    "SPARSE",
    "WHOLE",
    "Plot",
    "faded",
    "interval_trace",
    "plain_figure",
    "short_label",
]

DENSE, SPARSE, BOUND, BASELINE = "#7d8aa0", "#12978a", "#d9772b", "#8a6fd1"
WHOLE = "#c0396b"

_LABEL_CHARACTERS = 26


@dataclass(frozen=True)
class Plot:
    """A figure with what a reader who cannot see it is told."""

    identifier: str
    description: str
    caption: str
    figure: dict[str, Any]


def interval_trace(name: str, value: float, low: float, high: float, colour: str, text: str) -> dict[str, Any]:
    """One point with its interval as a row of its own."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": [value],
        "y": [name],
        "name": name,
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [high - value],
            "arrayminus": [value - low],
            "color": colour,
            "thickness": 3,
            "width": 8,
        },
        "marker": {"color": colour, "size": 13},
        "hovertemplate": f"{text}<extra>{name}</extra>",
    }


def plain_figure(data: list[dict[str, Any]], height: int, *, x_title: str, x: dict[str, Any]) -> dict[str, Any]:
    """A figure with a category for each row and no decoration; `x` is added to the options of the horizontal axis."""
    axis = {"fixedrange": True, "automargin": True, "zeroline": False}
    return {
        "data": data,
        "layout": {
            "height": height,
            "margin": {"l": 8, "r": 18, "t": 12, "b": 8},
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"family": "system-ui, -apple-system, 'Segoe UI', Roboto, sans-serif", "size": 13},
            "dragmode": False,
            "hovermode": "closest",
            "xaxis": {**axis, "title": {"text": x_title, "standoff": 12}, "showgrid": True, **x},
            "yaxis": {**axis, "showgrid": False, "ticklabelstandoff": 8, "type": "category"},
        },
    }


def faded(colour: str) -> str:
    """The colour "#rrggbb", mostly transparent."""
    red, green, blue = (int(colour[start : start + 2], 16) for start in (1, 3, 5))
    return f"rgba({red},{green},{blue},0.35)"


def short_label(name: str) -> str:
    """The end of a long layer name, which is the part that tells layers apart."""
    return name if len(name) <= _LABEL_CHARACTERS else "…" + name[1 - _LABEL_CHARACTERS :]
