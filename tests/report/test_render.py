import itertools
import re
from html.parser import HTMLParser

import plotly.graph_objects as go
import pytest

from masksparse_deploy.core.artifacts.learning import Stage
from masksparse_deploy.core.artifacts.survival import StageState
from masksparse_deploy.core.errors import MachineError, OutputError
from masksparse_deploy.report import plots
from masksparse_deploy.report.inputs import Provenance, ReportInputs
from masksparse_deploy.report.render import REPORT_NAME, render_report, write_report
from tests.report.artifacts import STAGES, make_inputs, make_learn, make_selection
from tests.report.engine_artifacts import make_engine, make_profile
from tests.report.updates import make_layer, make_update
from tests.report.validation_artifacts import make_attribution, make_survival, make_validation

VOID = {"meta", "br", "link", "img", "input", "hr"}


class _Document(HTMLParser):
    """Text outside of scripts and styles, identifiers, and whether every element is closed."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.identifiers: list[str] = []
        self.headings: list[int] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)
        self.identifiers += [value or "" for name, value in attrs if name == "id"]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"script", "style"} & set(self.open):
            self.text.append(data)


def _text(html: str) -> str:
    return " ".join(" ".join(_Document(html).text).split())


def test_everything_is_said():
    text = _text(render_report(make_inputs()))
    for expected in (
        "All checks passed, but it is not faster",
        "594 of 597",
        "not violated, but vacuous",
        "1 input channel: not a multiple of 4",
        "Not run on a GPU.",
        "masksparse deploy samples/digits/deploy.yaml",
        "1 January 2030",
        "weights: model.safetensors",
        make_engine("sparse").plan_sha256,
    ):
        assert expected in text


def test_where_a_layer_lost_its_sparsity():
    assert "None of the 9 masked layers was seen to lose it." in _text(render_report(make_inputs()))
    lost = make_survival(lost=make_validation().layers[4].layer)
    hidden = lost[0].model_copy(update={"module": StageState(state="not checked", why="nobody <looked>")})
    validation = make_validation().model_copy(update={"survival": (hidden, *lost[1:])})
    html = render_report(make_inputs(validation=validation))
    assert "1 of 9 masked layers lost it." in _text(html)
    assert "broken 3 of 2,304 groups engine" in _text(html)
    assert "not checked nobody <looked> conforming" in _text(html)


def test_the_structure_is_sound():
    document = _Document(render_report(make_inputs()))
    assert len(document.identifiers) == len(set(document.identifiers))
    assert document.headings[0] == 1 and document.headings.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(document.headings))


def test_the_same_inputs_give_the_same_bytes():
    assert render_report(make_inputs()) == render_report(make_inputs())


def test_plotly_is_in_the_file_once():
    assert render_report(make_inputs()).count("* plotly.js v") == 1


@pytest.mark.parametrize("stage", STAGES)
def test_any_stage_may_be_missing(stage):
    assert _text(render_report(make_inputs(**{stage: None})))


@pytest.mark.parametrize("last", range(len(STAGES)))
def test_a_run_that_stopped_early(last):
    text = _text(render_report(make_inputs(**dict.fromkeys(STAGES[last:]))))
    assert "has not run" in text


def test_nothing_has_run():
    text = _text(render_report(ReportInputs(name="nothing")))
    assert "There is no verdict yet" in text
    assert text.count("has not run") >= len(STAGES)


def test_what_ran_on_a_gpu():
    text = _text(
        render_report(make_inputs(sparse_engine=make_engine("sparse", gpu=True), profile=make_profile(1.42, gpu=True)))
    )
    assert "6 of 9 layers run a sparse kernel" in text
    assert "made_up_sparse_fprop_kernel" in text
    assert "Not run on a GPU" not in text


def test_text_from_outside_cannot_become_markup():
    attack = "</script><script>alert(1)</script>"
    learn = make_learn()
    layers = (learn.layers[0].model_copy(update={"name": attack}),)
    validation = make_validation()
    deviation = validation.layers[0].model_copy(update={"layer": attack})
    html = render_report(
        make_inputs(
            name=attack,
            learn=learn.model_copy(update={"layers": layers}),
            validation=validation.model_copy(update={"layers": (deviation,)}),
            provenance=Provenance(command=attack, config_text=attack),
        )
    )
    assert attack not in html
    assert _Document(html).text


@pytest.mark.parametrize(
    "plot",
    [
        plots.latency_plot(make_profile()),
        plots.speedup_plot(make_profile()),
        plots.layers_plot(make_validation().layers),
        plots.accuracy_plot(make_validation().accuracy),
        plots.attribution_plot(make_attribution()),
        plots.methods_plot(make_learn()),
        plots.sensitivity_plot(make_selection()),
    ],
    ids=lambda plot: plot.identifier,
)
def test_plots_are_valid_figures(plot):
    # refuses every property and value that Plotly does not know
    assert len(go.Figure(plot.figure).data) >= 1
    assert plot.description.endswith(".") and plot.caption.endswith(".")


def test_that_check_refuses_a_wrong_property():
    plot = plots.methods_plot(make_learn())
    with pytest.raises(ValueError, match="markers"):
        go.Figure({**plot.figure, "data": [{**plot.figure["data"][0], "markers": {}}]})


def test_a_layer_without_deviation_is_drawn_by_its_bound_only():
    layer = make_validation().layers[0].model_copy(update={"deviation": 0.0, "tightness": None})
    figure = plots.layers_plot([layer]).figure
    assert [trace["x"] for trace in figure["data"]] == [[], [None], [layer.deviation_bound]]


def test_the_parts_of_a_deviation_are_shown_with_their_order():
    text = _text(render_report(make_inputs()))
    assert "What the deviation is made of Measured, not proved, on 64 samples" in text
    assert "output 31.4 0.253 0.25 0.031 0.253 0.012 3.10" in text
    figure = plots.attribution_plot(make_attribution()).figure
    assert [trace["name"] for trace in figure["data"]] == ["mask", "new values", "quantization", "rounding", "whole deviation"]
    assert figure["data"][0]["x"] == [25.0] * 10 and figure["layout"]["barmode"] == "stack"
    # they may cancel each other, but never be less than the whole
    assert sum(trace["x"][0] for trace in figure["data"][:4]) >= figure["data"][4]["x"][0]


def test_an_output_that_cannot_be_evaluated_is_told():
    changes = {"output": None, "output_norm": None, "output_obstacle": "the float64 reference does not cover <Mod>"}
    found = make_attribution().model_copy(update=changes)
    text = _text(render_report(make_inputs(validation=make_validation().model_copy(update={"attribution": found}))))
    assert "Not known of the output : the float64 reference does not cover <Mod>." in text
    assert len(plots.attribution_plot(found).figure["data"][0]["x"]) == 9
    without = make_validation().model_copy(update={"attribution": None})
    assert "What the deviation is made of" not in _text(render_report(make_inputs(validation=without)))


def test_the_plot_of_sensitivities_tells_masked_from_dense_layers():
    selection = make_selection()
    harmless = selection.layers[0].alone.model_copy(update={"divergence": 0.0})
    layers = (selection.layers[0].model_copy(update={"alone": harmless}), *selection.layers[1:])
    masked, dense = plots.sensitivity_plot(selection.model_copy(update={"layers": layers})).figure["data"]
    assert [masked["y"], dense["y"]] == [[layer.name for layer in layers[:-1]], [layers[-1].name]]
    assert masked["x"][0] is None  # zero has no place on a logarithmic axis
    assert dense["x"] == [layers[-1].alone.divergence]


def test_a_selection_is_shown_with_its_reasons_and_only_where_there_is_one():
    text = _text(render_report(make_inputs()))
    assert "What a mask on each layer costs" in text
    assert "over the budget: 0.67 points would be lost, 0.6 allowed" in text
    assert "made for other weights" not in text
    assert make_selection().digest in text
    assert "What a mask on each layer costs" not in _text(render_report(make_inputs(selection=None)))


@pytest.mark.parametrize("change", [{"source_sha256": "0" * 64}, {"pattern": "1:4"}])
def test_a_selection_for_other_masks_is_told(change):
    text = _text(render_report(make_inputs(selection=make_selection().model_copy(update=change))))
    assert "made for other weights or another pattern" in text


def test_inferences_that_are_not_drawn_are_counted():
    profile = make_profile()
    samples = (*profile.dense.samples_ms, 50 * profile.dense.p99_ms, 60 * profile.dense.p99_ms)
    before = plots.latency_plot(profile).caption
    after = plots.latency_plot(
        profile.model_copy(update={"dense": profile.dense.model_copy(update={"samples_ms": samples})})
    ).caption
    drawn_before = int((re.search(r" (\d+) slower", before) or [0, 0])[1])
    assert int(re.search(r" (\d+) slower inferences", after)[1]) == drawn_before + 2


def test_write(tmp_path):
    path = write_report(tmp_path / "out", make_inputs())
    assert path == tmp_path / "out" / REPORT_NAME
    assert path.read_text(encoding="utf-8") == render_report(make_inputs())


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(tmp_path / "file", make_inputs())


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    with pytest.raises(MachineError, match=r"plotly is needed for writing the report.*masksparse-deploy\[report\]"):
        render_report(make_inputs())


def test_the_recipe_says_what_each_stage_brought():
    recipe = (
        Stage(name="dense", correct=900, total=1000, kept=True, passed=True),
        Stage(name="magnitude", correct=700, total=1000, kept=True, passed=False),
        Stage(name="permutation", correct=None, total=1000, kept=False, passed=False, note="no order <keeps> more"),
        Stage(name="batch norm", correct=690, total=1000, kept=False, passed=False),
        Stage(name="scores", correct=895, total=1000, kept=True, passed=True, note="after all"),
    )
    learn = make_learn().model_copy(update={"recipe": recipe, "permutation_count": 7})
    text = _text(render_report(make_inputs(learn=learn)))
    assert "What each stage of the recipe brought, on the test images" in text
    assert "magnitude 700 1,000 70.00 % kept, does not pass the accuracy gate" in text
    assert "left out: no order <keeps> more" in text
    assert "batch norm 690 1,000 69.00 % dropped again, does not pass" in text
    assert "scores 895 1,000 89.50 % kept, passes the accuracy gate (after all)" in text
    assert "accuracies on these are a little optimistic" in text
    assert "The channels of 7 tensors are in a new order" in text
    decided = learn.model_copy(update={"decided_on": "validation"})
    assert "a little optimistic" not in _text(render_report(make_inputs(learn=decided)))
    without = _text(render_report(make_inputs()))
    assert "recipe" not in without and "new order" not in without


def test_new_weights_are_said_and_how_far_they_moved():
    learn = make_learn()
    layers = tuple(layer.model_copy(update={"pattern": "T2:4", "weight_change": 0.125}) for layer in learn.layers)
    changes = {"pattern": "T2:4", "method": "sparse-training", "layers": layers, "weights_sha256_after": "0" * 64}
    names = (*(layer.weight_name for layer in layers), "fc.weight")
    text = _text(render_report(make_inputs(learn=learn.model_copy(update={**changes, "changed_parameters": names}))))
    assert "T2:4 along the input channels and along the output channels, masks chosen by “sparse-training”" in text
    assert "It gave 10 parameters new values, and batch-norm statistics follow; the dense network keeps its own." in text
    assert text.count("12.5 %") >= len(layers)
    assert "Moved by" in text and "trained" in text
    without = _text(render_report(make_inputs()))
    assert "The weights themselves did not change" in without and "Moved by" not in without
    assert "2:4 along the input channels, masks chosen" in without
    unexpected = learn.model_copy(update={"weights_sha256_after": "0" * 64})
    assert "The weights changed while the masks were learned." in _text(render_report(make_inputs(learn=unexpected)))


def test_what_to_expect_of_a_fresh_image():
    validation = make_validation()
    text = _text(render_report(make_inputs()))
    assert "What to expect of a fresh image" in text
    assert validation.deviation.statement in text
    assert "Quantile of the distance at 95.0 %, from 299 samples 1.31 285 are within it" in text
    assert "Margin that it takes 1.85 271 have it, 270 of these keep their class" in text
    assert "298 samples that were not drawn" in text
    assert "(smallest bound)" in text


def test_too_few_samples_show_no_quantile():
    few = {"quantile": None, "margin": None, "covered_count": None, "wide_margin_count": None, "kept_count": None}
    validation = make_validation()
    deviation = validation.deviation.model_copy(update={**few, "statement": "Nothing is said: 9 samples are too few."})
    text = _text(render_report(make_inputs(validation=validation.model_copy(update={"deviation": deviation}))))
    assert "Nothing is said: 9 samples are too few." in text
    assert "Quantile of the distance" not in text


def test_an_update_is_shown_where_there_is_one() -> None:
    assert "What the new weights changed" not in render_report(make_inputs())
    beyond = make_update(
        layers=(make_layer("blocks.0", within_layerwise=False),),
        within_layerwise=False,
        grown=("blocks.0",),
        remarks=("a < b",),
    )
    for update, words in (
        (make_update(), "the update is within the budget"),
        (beyond, "Computed anew, more than that: blocks.0."),
        (make_update(within_end_to_end=None), "There is no end-to-end budget"),
        (make_update(other_changes=("PRelu p",)), "Changed, and covered by no budget: PRelu p."),
    ):
        html = render_report(make_inputs(update=update, learn=None))
        assert words in _text(html)
        assert "The masks are those of the run that was updated" in html
    assert "a &lt; b" in render_report(make_inputs(update=beyond))
