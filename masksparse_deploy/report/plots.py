"""The report's plots of the artifacts."""

from collections.abc import Sequence
from typing import Any

from masksparse_deploy.core.artifacts.attribution import PARTS, Attribution
from masksparse_deploy.core.artifacts.learning import LearnReport
from masksparse_deploy.core.artifacts.selection import LayerSelection
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import AccuracyComparison, LayerDeviation
from masksparse_deploy.report.figures import (
    BASELINE,
    BOUND,
    DENSE,
    SPARSE,
    WHOLE,
    Plot,
    faded,
    interval_trace,
    plain_figure,
    short_label,
)
from masksparse_deploy.report.formats import TIMES

__all__ = [
    "accuracy_plot",
    "attribution_plot",
    "latency_plot",
    "layers_plot",
    "methods_plot",
    "sensitivity_plot",
    "speedup_plot",
]

_PART_COLOURS = dict(zip(PARTS, (SPARSE, BASELINE, BOUND, DENSE), strict=True))

_TWO_DECADES = 100


def latency_plot(profile: ProfileReport) -> Plot:
    """Densities of the times of single inferences, sparse above dense."""
    rows = [("dense", profile.dense, DENSE), ("sparse", profile.sparse, SPARSE)]
    if profile.forbidden is not None:
        rows.insert(1, ("forbidden", profile.forbidden, BASELINE))
    # a single slow inference would squeeze everything else into a line
    right = 1.15 * max(latency.p99_ms for _, latency, _ in rows)
    left = 0.98 * min(min(latency.samples_ms) for _, latency, _ in rows)
    hidden = sum(sample > right for _, latency, _ in rows for sample in latency.samples_ms)
    data = [
        {
            "type": "violin",
            "orientation": "h",
            "side": "positive",
            "width": 1.5,
            "points": False,
            "box": {"visible": True, "width": 0.16},
            "x": list(latency.samples_ms),
            "y0": name,
            "name": name,
            "line": {"color": colour, "width": 2},
            "fillcolor": faded(colour),
            "hoverinfo": "x",
            "spanmode": "hard",
        }
        for name, latency, colour in rows
    ]
    figure = plain_figure(data, 300, x_title="milliseconds for one inference", x={"range": [left, right], "tickformat": "~g"})
    figure["layout"]["showlegend"] = False
    caption = "Each shape shows how often a time was measured; the box holds the middle half, its line is the median."
    if hidden:
        caption += f" {hidden} slower inferences lie further right and are not drawn; the table counts them."
    description = (
        f"Distribution of inference times: dense median {profile.dense.median_ms:.3g} ms, sparse median "
        f"{profile.sparse.median_ms:.3g} ms."
    )
    return Plot("latency", description, caption, figure)


def speedup_plot(profile: ProfileReport) -> Plot:
    """The speedup and its control, with intervals, beside the line that means "the same speed"."""
    rows = (("dense again", profile.control, DENSE), ("sparse", profile.speedup, SPARSE))
    data = [
        interval_trace(name, found.ratio, found.interval.low, found.interval.high, colour, f"{found.ratio:.3f}{TIMES}")
        for name, found, colour in rows
    ]
    figure = plain_figure(data, 190, x_title="times the dense speed", x={"ticksuffix": TIMES, "nticks": 5})
    ends = [end for _, found, _ in rows for end in (found.interval.low, found.interval.high, 1.0)]
    margin = max(0.15 * (max(ends) - min(ends)), 0.01)
    figure["layout"]["xaxis"]["range"] = [min(ends) - margin, max(ends) + margin]
    figure["layout"]["yaxis"]["range"] = [-0.6, 1.6]
    figure["layout"]["showlegend"] = False
    figure["layout"]["shapes"] = [
        {
            "type": "line",
            "x0": 1,
            "x1": 1,
            "yref": "paper",
            "y0": 0,
            "y1": 1,
            "line": {"color": BOUND, "width": 2, "dash": "dot"},
        }
    ]
    return Plot(
        "speedup",
        f"Speedup {profile.speedup.ratio:.3f} and control {profile.control.ratio:.3f} with confidence intervals.",
        "Dotted: the same speed. “dense again” times the dense engine against itself: it shows how small a difference this run "
        "can tell.",
        figure,
    )


def layers_plot(layers: Sequence[LayerDeviation]) -> Plot:
    """For every changed layer the measured deviation and its proved bound, on a logarithmic axis."""
    names = [layer.layer for layer in layers]
    lines_x: list[float | None] = []
    lines_y: list[str | None] = []
    for layer in layers:
        if layer.deviation > 0:
            lines_x += [layer.deviation, layer.deviation_bound, None]
            lines_y += [layer.layer, layer.layer, None]
    data: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": lines_x,
            "y": lines_y,
            "line": {"color": faded(BOUND), "width": 4},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    points = (
        ("measured", [layer.deviation or None for layer in layers], SPARSE, "circle"),
        ("proved bound", [layer.deviation_bound for layer in layers], BOUND, "line-ns-open"),
    )
    for name, values, colour, symbol in points:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": name,
                "x": values,
                "y": names,
                "marker": {"color": colour, "size": 12, "symbol": symbol, "line": {"width": 4 if "open" in symbol else 0}},
                "hovertemplate": "%{y}: %{x:.3g}<extra>" + name + "</extra>",
            }
        )
    drawn = [value for layer in layers for value in (layer.deviation, layer.deviation_bound) if value > 0]
    # ticks at 1, 2 and 5 where a tick for each power of ten would leave only one or two
    spacing = "D2" if drawn and max(drawn) < _TWO_DECADES * min(drawn) else 1
    axis = {"type": "log", "tickformat": "~g", "dtick": spacing}
    figure = plain_figure(data, 26 * len(layers) + 130, x_title="deviation from the dense layer", x=axis)
    figure["layout"]["yaxis"].update(
        {"autorange": "reversed", "tickvals": names, "ticktext": [short_label(name) for name in names], "categoryarray": names}
    )
    figure["layout"]["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    within = sum(layer.deviation <= layer.deviation_bound for layer in layers)
    return Plot(
        "layers",
        f"Measured deviation and proved bound of {len(layers)} changed layers; {within} are within their bound.",
        "l2 norm of the sample that comes closest to its layer's bound. The dot must stay left of the bar.",
        figure,
    )


def attribution_plot(attribution: Attribution) -> Plot:
    """For every changed layer, and the output first, what its deviation is made of, stacked, and the whole as a mark."""
    rows = [] if attribution.output is None else [("the network's output", attribution.output)]
    rows += [(layer.layer, layer.parts) for layer in attribution.layers]
    names = [name for name, _ in rows]
    data: list[dict[str, Any]] = []
    for part in PARTS:
        values = [100 * getattr(parts, part) for _, parts in rows]
        label = part.replace("_", " ")
        data.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": label,
                "x": values,
                "y": names,
                "marker": {"color": _PART_COLOURS[part]},
                "hovertemplate": "%{y}: %{x:.3g} %<extra>" + label + "</extra>",
            }
        )
    data.append(
        {
            "type": "scatter",
            "mode": "markers",
            "name": "whole deviation",
            "x": [100 * parts.total for _, parts in rows],
            "y": names,
            "marker": {"color": WHOLE, "size": 12, "symbol": "line-ns-open", "line": {"width": 3}},
            "hovertemplate": "%{y}: %{x:.3g} %<extra>whole deviation</extra>",
        }
    )
    figure = plain_figure(data, 26 * len(rows) + 150, x_title="% of the norm of the dense output", x={"rangemode": "tozero"})
    figure["layout"].update({"barmode": "stack", "bargap": 0.3})
    figure["layout"]["yaxis"].update(
        {"autorange": "reversed", "tickvals": names, "ticktext": [short_label(name) for name in names], "categoryarray": names}
    )
    figure["layout"]["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom", "traceorder": "normal"}
    return Plot(
        "attribution",
        f"What the deviation of the output and of {len(attribution.layers)} changed layers is made of.",
        "Each part is the step from one network to the next, in the order of the legend. The steps add up to the whole or "
        "more, as they may cancel each other; another order would give other parts.",
        figure,
    )


def methods_plot(learn: LearnReport) -> Plot:
    """Top-1 accuracy of every way to choose masks, on the whole scale from 0 to 100 %."""
    rows = [
        (entry.method, 100 * entry.correct / entry.total, DENSE if entry.method == "dense" else BASELINE)
        for entry in learn.accuracies
    ]
    if rows:
        rows[-1] = (*rows[-1][:2], SPARSE)
    data = [
        {
            "type": "bar",
            "orientation": "h",
            "x": [value],
            "y": [name],
            "text": [f"{value:.1f} %"],
            "textposition": "outside",
            "cliponaxis": False,
            "marker": {"color": colour},
            "hovertemplate": f"{value:.2f} %<extra>{name}</extra>",
        }
        for name, value, colour in rows
    ]
    figure = plain_figure(
        data, 38 * len(rows) + 76, x_title="top-1 accuracy, %", x={"range": [0, 135], "tickvals": [0, 25, 50, 75, 100]}
    )
    figure["layout"].update({"showlegend": False, "bargap": 0.35})
    figure["layout"]["yaxis"].update({"autorange": "reversed", "categoryarray": [name for name, *_ in rows]})
    description = "Top-1 accuracy: " + ", ".join(f"{name} {value:.1f} %" for name, value, _ in rows) + "."
    caption = "PyTorch, with the masks that each method chooses; the last one's were kept."
    return Plot("methods", description, caption, figure)


def sensitivity_plot(selection: LayerSelection) -> Plot:
    """For every layer the divergence that a mask on this layer alone causes, on a logarithmic axis; the first tried on top."""
    names = [layer.name for layer in selection.layers]
    chosen = set(selection.chosen)
    data = []
    for label, masked, colour in (("gets a mask", True, SPARSE), ("left dense", False, DENSE)):
        layers = [layer for layer in selection.layers if (layer.name in chosen) == masked]
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                # a logarithmic axis has no place for zero
                "x": [layer.alone.divergence or None for layer in layers],
                "y": [layer.name for layer in layers],
                "marker": {"color": colour, "size": 12},
                "hovertemplate": "%{y}: %{x:.3g}<extra>" + label + "</extra>",
            }
        )
    drawn = [layer.alone.divergence for layer in selection.layers if layer.alone.divergence > 0]
    spacing = "D2" if drawn and max(drawn) < _TWO_DECADES * min(drawn) else 1
    axis = {"type": "log", "tickformat": "~g", "dtick": spacing}
    figure = plain_figure(data, 26 * len(names) + 130, x_title="divergence with a mask on this layer alone, nats", x=axis)
    figure["layout"]["yaxis"].update(
        {"autorange": "reversed", "tickvals": names, "ticktext": [short_label(name) for name in names], "categoryarray": names}
    )
    figure["layout"]["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    return Plot(
        "sensitivity",
        f"Divergence of the network with a mask on one layer alone, for {len(names)} layers; {len(chosen)} get a mask.",
        "Further right: a mask on this layer changes the network's answers more. From top to bottom: the order in which layers "
        "were added, the least change for each multiplication saved first.",
        figure,
    )


def accuracy_plot(accuracy: AccuracyComparison) -> Plot:
    """Top-1 accuracy of the two engines with exact intervals, on a scale that shows the difference."""
    total = accuracy.total
    rows = (
        ("dense", 100 * accuracy.dense_correct / total, accuracy.dense_accuracy, DENSE),
        ("sparse", 100 * accuracy.sparse_correct / total, accuracy.sparse_accuracy, SPARSE),
    )
    data = [
        interval_trace(name, value, 100 * ends.low, 100 * ends.high, colour, f"{value:.2f} %")
        for name, value, ends, colour in reversed(rows)
    ]
    figure = plain_figure(data, 190, x_title="top-1 accuracy, %", x={"nticks": 6})
    figure["layout"]["yaxis"]["range"] = [-0.6, 1.6]
    figure["layout"]["showlegend"] = False
    description = "Top-1 accuracy: " + ", ".join(f"{name} engine {value:.2f} %" for name, value, *_ in rows) + "."
    caption = f"With exact {100 * accuracy.dense_accuracy.confidence:.4g} % intervals (Clopper-Pearson)."
    return Plot("accuracy", description, caption, figure)
