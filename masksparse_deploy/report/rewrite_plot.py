"""The plot of what rewriting layers brought."""

from collections.abc import Mapping

from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.report.figures import BOUND, DENSE, SPARSE, Plot, faded, plain_figure, short_label
from masksparse_deploy.report.formats import TIMES

__all__ = ["rewrite_plot"]


def rewrite_plot(report: RewriteReport, layer_names: Mapping[str, str]) -> Plot:
    """For every layer that was timed its measured speedup, and the one that its pattern would give if zeros cost nothing.

    `layer_names` are those of the modules by node; a layer that has none there goes by its node.
    """
    layers = [layer for layer in report.layers if layer.speedup is not None]
    shown = {layer.node: layer_names.get(layer.node, layer.node) for layer in layers}
    names = list(shown.values())
    data = [
        {
            "type": "scatter",
            "mode": "lines",
            "x": [end for layer in layers for end in (1.0, layer.ideal, None)],
            "y": [name for layer in layers for name in (shown[layer.node], shown[layer.node], None)],
            "line": {"color": faded(BOUND), "width": 4},
            "hoverinfo": "skip",
            "showlegend": False,
        }
    ]
    rewritten = [layer for layer in layers if layer.form != "dense"]
    stay = [layer for layer in layers if layer.form == "dense"]
    points = (
        ("rewritten", rewritten, [layer.speedup for layer in rewritten], SPARSE, "circle"),
        ("left dense", stay, [layer.speedup for layer in stay], DENSE, "circle"),
        ("ideal: 1 / density", layers, [layer.ideal for layer in layers], BOUND, "line-ns-open"),
    )
    for label, rows, values, colour, symbol in points:
        data.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": label,
                "x": values,
                "y": [shown[layer.node] for layer in rows],
                "marker": {"color": colour, "size": 12, "symbol": symbol, "line": {"width": 4 if "open" in symbol else 0}},
                "hovertemplate": "%{y}: %{x:.3g}" + TIMES + "<extra>" + label + "</extra>",
            }
        )
    figure = plain_figure(
        data, 26 * len(names) + 130, x_title="times the dense layer's speed", x={"ticksuffix": TIMES, "rangemode": "tozero"}
    )
    figure["layout"]["yaxis"].update(
        {
            "autorange": "reversed",
            "tickvals": names,
            "ticktext": [short_label(name) for name in names],
            "categoryarray": names,
        }
    )
    figure["layout"]["legend"] = {"orientation": "h", "x": 0, "y": 1.0, "yanchor": "bottom"}
    return Plot(
        "rewrite",
        f"Measured speedup of {len(layers)} layers with 1xN blocks or masked positions, and what they would have at best; "
        f"{len(rewritten)} were rewritten.",
        "Layer by layer, each form timed against the dense layer. A layer that stays dense stands at 1.",
        figure,
    )
