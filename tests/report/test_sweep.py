from pathlib import Path

import plotly.graph_objects as go

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.sweeping import SweepPoint, SweepReport
from masksparse_deploy.core.artifacts.timing import Speedup
from masksparse_deploy.report.formats import TIMES
from masksparse_deploy.report.render import render_report
from masksparse_deploy.report.sweep_plot import sweep_plot, write_sweep_page
from tests.report.artifacts import make_inputs
from tests.report.test_render import _text

INPUTS = make_inputs()


def make_sweep(**changes: str) -> SweepReport:
    def speedup(ratio: float) -> Speedup:
        return Speedup(ratio=ratio, interval=Interval(low=ratio - 0.02, high=ratio + 0.03, confidence=0.9))

    def point(batch: int, size: int, ratio: float, invalid: tuple[str, ...] = ()) -> SweepPoint:
        return SweepPoint(
            batch=batch,
            height=size,
            width=size,
            dense_ms=0.1 * batch,
            sparse_ms=0.1 * batch / ratio,
            speedup=speedup(ratio),
            control=speedup(1.0),
            ratios=(),
            end_to_end=None,
            sparse_kernels="",
            invalid_because=invalid,
        )

    assert INPUTS.bake is not None
    files = {"dense_onnx_sha256": INPUTS.bake.dense_sha256, "sparse_onnx_sha256": INPUTS.bake.sparse_sha256}
    points = (point(1, 192, 1.0), point(8, 192, 1.1), point(1, 224, 1.02), point(8, 224, 1.2, ("other load",)))
    fixed = {"backend": "tensorrt", "device": "Made-up GPU", "versions": {}, "options": {}, "clock": "CUDA events"}
    return SweepReport(**{**files, **fixed, "points": points, **changes})


def test_one_line_a_size_and_hollow_points_for_figures_that_must_not_be_used() -> None:
    plot = sweep_plot(make_sweep())
    assert len(go.Figure(plot.figure).data) == 2
    small, large = plot.figure["data"]
    assert (small["x"], small["y"]) == ([1, 8], [1.0, 1.1])
    assert large["marker"]["symbol"] == ["circle", "circle-open"]
    assert plot.figure["layout"]["xaxis"]["type"] == "log"
    assert plot.figure["layout"]["yaxis"]["type"] == "linear"
    assert "batch 8 of 224x224: 1.20" in plot.description


def test_the_report_shows_a_sweep_of_its_files() -> None:
    text = _text(render_report(make_inputs(sweep=make_sweep())))
    assert "Other batches and image sizes" in text
    assert f"224 {TIMES} 224 8 0.800 ms 0.667 ms 1.20{TIMES} 1.18 to 1.23 90 % other load" in text
    assert "not made from the ONNX files of this run" not in text
    assert "tensorrt on Made-up GPU, CUDA events." in text
    assert "on Made-up GPU, sm_90, CUDA events." in _text(render_report(make_inputs(sweep=make_sweep(architecture="sm_90"))))
    text = _text(render_report(make_inputs(sweep=make_sweep(sparse_onnx_sha256="0" * 64))))
    assert "This sweep was not made from the ONNX files of this run." in text


def test_the_page_holds_everything_it_shows(tmp_path: Path) -> None:
    write_sweep_page(tmp_path / "sweep.html", make_sweep(), "digits")
    page = (tmp_path / "sweep.html").read_text(encoding="utf-8")
    assert "digits: tensorrt on Made-up GPU" in page
    assert 'src="http' not in page
