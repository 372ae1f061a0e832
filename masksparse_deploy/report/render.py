"""The report: one HTML file that holds everything it shows, and asks the network for nothing."""

import json
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from masksparse_deploy.core.files import write_atomic
from masksparse_deploy.core.optional import require
from masksparse_deploy.report import formats
from masksparse_deploy.report.figures import Plot
from masksparse_deploy.report.forecast import forecast_view
from masksparse_deploy.report.headline import make_headline
from masksparse_deploy.report.inputs import ReportInputs
from masksparse_deploy.report.plots import (
    accuracy_plot,
    attribution_plot,
    latency_plot,
    layers_plot,
    methods_plot,
    sensitivity_plot,
    speedup_plot,
)
from masksparse_deploy.report.position_pictures import position_pictures
from masksparse_deploy.report.rewrite_plot import rewrite_plot
from masksparse_deploy.report.sweep_plot import sweep_plot

__all__ = ["REPORT_NAME", "render_report", "write_report"]

REPORT_NAME = "report.html"

_NEEDED_FOR = "writing the report"


def render_report(inputs: ReportInputs) -> str:
    """The whole HTML document; the same inputs give the same text.

    Raises:
        MachineError: jinja2 or plotly is not installed.
    """
    jinja2 = require("jinja2", needed_for=_NEEDED_FOR)
    plotly_offline = require("plotly.offline", needed_for=_NEEDED_FOR)
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("masksparse_deploy.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (
        formats.along,
        formats.count,
        formats.figures,
        formats.interval,
        formats.milliseconds,
        formats.percent,
        formats.times,
    )
    environment.filters.update({function.__name__: function for function in filters})
    environment.filters["script_json"] = lambda value: jinja2.utils.markupsafe.Markup(_script_json(value))
    style = resources.files("masksparse_deploy.report").joinpath("style.css").read_text(encoding="utf-8")
    text: str = environment.get_template("template.html.j2").render(
        inputs=inputs,
        headline=make_headline(inputs),
        shown_forecast=forecast_view(inputs),
        digests=list(_digests(inputs)),
        pictures=position_pictures(inputs.bake.positions) if inputs.bake is not None else (),
        layer_names=_layer_names(inputs),
        plots={plot.identifier: plot for plot in _plots(inputs)},
        style=style,
        plotly_js=plotly_offline.get_plotlyjs(),
    )
    return text


def write_report(folder: Path, inputs: ReportInputs) -> Path:
    """Write `render_report(inputs)` to `folder / REPORT_NAME`, whole or not at all, and return its path.

    Raises:
        MachineError: jinja2 or plotly is not installed.
        OutputError: the file cannot be written.
    """
    path = folder / REPORT_NAME
    write_atomic(path, render_report(inputs).encode())
    return path


def _plots(inputs: ReportInputs) -> Iterator[Plot]:
    if inputs.profile is not None:
        yield latency_plot(inputs.profile)
        yield speedup_plot(inputs.profile)
    if inputs.sweep is not None and inputs.sweep.points:
        yield sweep_plot(inputs.sweep)
    if inputs.rewrite is not None and any(layer.speedup is not None for layer in inputs.rewrite.layers):
        yield rewrite_plot(inputs.rewrite, _layer_names(inputs))
    if inputs.validation is not None:
        yield accuracy_plot(inputs.validation.accuracy)
        if inputs.validation.layers:
            yield layers_plot(inputs.validation.layers)
        if inputs.validation.attribution is not None:
            yield attribution_plot(inputs.validation.attribution)
    if inputs.learn is not None:
        yield methods_plot(inputs.learn)
    if inputs.selection is not None:
        yield sensitivity_plot(inputs.selection)


def _layer_names(inputs: ReportInputs) -> dict[str, str]:
    """The module of each masked layer, by the name of its node."""
    return {} if inputs.bake is None else {layer.node: layer.layer for layer in inputs.bake.layers}


def _digests(inputs: ReportInputs) -> Iterator[tuple[str, str]]:
    """What the run consists of, in the order of the stages."""
    if inputs.selection is not None:
        yield "Selection of layers", inputs.selection.digest
    if inputs.learn is not None:
        yield "Weights", inputs.learn.source_sha256
        yield "Mask set", inputs.learn.mask_set_sha256
    if inputs.update is not None:
        yield "Update", inputs.update.digest
        yield "Mask set before", inputs.update.masks_old_sha256
        yield "Mask set", inputs.update.masks_new_sha256
        yield "Dense ONNX file before", inputs.update.dense_old_sha256
        yield "Sparse ONNX file before", inputs.update.sparse_old_sha256
    if inputs.bake is not None:
        yield "Dense ONNX file", inputs.bake.dense_sha256
        yield "Sparse ONNX file", inputs.bake.sparse_sha256
    if inputs.rewrite is not None and inputs.rewrite.rewritten_sha256 is not None:
        yield "Rewritten ONNX file", inputs.rewrite.rewritten_sha256
    if inputs.dense_engine is not None:
        yield "Dense plan", inputs.dense_engine.plan_sha256
    if inputs.sparse_engine is not None:
        yield "Sparse plan", inputs.sparse_engine.plan_sha256
    if inputs.certificate is not None:
        yield "Certificate", inputs.certificate.digest
        yield "Samples of the certificate", inputs.certificate.data_sha256
    if inputs.validation is not None:
        yield "Validation report", inputs.validation.digest
        yield "Samples of the validation", inputs.validation.data_sha256


def _script_json(value: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
