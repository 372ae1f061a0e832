import plotly.graph_objects as go
import pytest

from masksparse_deploy.report.formats import TIMES, along
from masksparse_deploy.report.headline import make_headline
from masksparse_deploy.report.render import render_report
from masksparse_deploy.report.rewrite_plot import rewrite_plot
from tests.report.artifacts import make_inputs, make_rewrite
from tests.report.engine_artifacts import make_profile
from tests.report.test_render import _text


def test_what_the_rewrite_brought_is_shown_layer_by_layer():
    text = _text(render_report(make_inputs(rewrite=make_rewrite())))
    assert f"2 of 3 layers with 1{TIMES}N blocks or masked positions leave out zeros that a dense layer multiplies" in text
    assert f"The whole network runs at 1.31{TIMES} (95 % interval 1.28 to 1.34) the speed of the same network" in text
    assert "one layer is quantized and stays dense" in text
    assert (
        "layer2.0.conv2 1x32@0.5 gathered dense 0.900 ms gathered, 16 channels a group 0.500 ms (timed before) "
        f"1.80{TIMES} 1.76 to 1.84 2.00{TIMES} 50.0 % 1.80 times as fast as the dense layer"
    ) in text
    assert make_rewrite().rewritten_sha256 in text


def test_layers_that_were_not_rewritten_are_told_of_plainly():
    text = _text(render_report(make_inputs(rewrite=make_rewrite(rewritten=False))))
    assert "No layer was rewritten: the sparse file is deployed as it is, and its zeros are multiplied" in text
    assert "layer2.0.conv2 1x32@0.5 dense" in text


@pytest.mark.parametrize("rewrite", [None, make_rewrite(rewritten=False).model_copy(update={"layers": ()})])
def test_where_there_was_nothing_to_rewrite_nothing_is_said(rewrite):
    assert "the rewrite of layers" not in _text(render_report(make_inputs(rewrite=rewrite)))


def test_the_plot_tells_rewritten_from_dense_layers():
    plot = rewrite_plot(make_rewrite(), {"layer2.0.conv2": "a module"})
    assert len(go.Figure(plot.figure).data) == 4
    assert plot.description.endswith("2 were rewritten.") and plot.caption.endswith(".")
    _, rewritten, dense, ideal = plot.figure["data"]
    assert (rewritten["y"], dense["y"]) == (["a module", "layer2.1.conv1"], ["layer2.0.shortcut"])
    assert (rewritten["x"], dense["x"], ideal["x"]) == ([0.9 / 0.5, 0.9 / 0.48], [1.0], [2.0, 2.0, 2.0])


@pytest.mark.parametrize(
    ("ratio", "rewritten", "told"), [(0.9, True, True), (0.9, False, False), (1.0, True, False), (1.4, True, False)]
)
def test_a_rewritten_engine_that_is_slower_than_the_dense_one_is_told_on_the_first_screen(ratio, rewritten, told):
    inputs = make_inputs(profile=make_profile(ratio, 0.02), rewrite=make_rewrite(rewritten=rewritten))
    notes = make_headline(inputs).figures[0].notes
    assert ("Layers were rewritten, and yet it is slower than the dense engine here: deploy the dense one." in notes) == told


def test_patterns_say_where_they_run():
    assert along("2:4") == "2:4 along the input channels"
    assert along("T2:4") == "T2:4 along the input channels and along the output channels"
    assert along("1x32@0.5/16") == "1x32@0.5/16 in blocks of 32 output channels"
    assert along("1x8~0.75") == "1x8~0.75 in blocks of 8 output channels"
