from masksparse_deploy.report.formats import NOTHING, TIMES, milliseconds
from masksparse_deploy.report.plots import latency_plot
from masksparse_deploy.report.render import render_report
from tests.report.artifacts import make_inputs
from tests.report.engine_artifacts import make_gpu_profile, make_profile
from tests.report.test_render import _text


def test_ratios_of_three_engines_say_what_they_cover():
    text = _text(render_report(make_inputs(profile=make_gpu_profile())))
    assert f"sparse, against sparse tactics forbidden 1.29{TIMES} 1.25 to 1.33 90 % 1.26{TIMES} to 1.32{TIMES} faster" in text
    assert f"sparse tactics forbidden, against dense 1.01{TIMES} 0.97 to 1.05 90 %" in text
    assert "not told apart" in text
    assert "intervals cover what builds differ by" in text
    assert text.count("3 of 9 layers") == 9
    assert "All engines were timed in one process" in text
    named = make_gpu_profile().model_copy(update={"device": "A GPU", "architecture": "sm_90"})
    assert "on A GPU (sm_90), 64 images an inference." in _text(render_report(make_inputs(profile=named)))


def test_all_engines_are_drawn():
    assert [row["name"] for row in latency_plot(make_gpu_profile()).figure["data"]] == ["dense", "forbidden", "sparse"]
    assert [row["name"] for row in latency_plot(make_profile()).figure["data"]] == ["dense", "sparse"]


def test_one_build_of_each_is_said_to_be_one():
    text = _text(render_report(make_inputs(profile=make_gpu_profile(build_count=1))))
    assert "Each engine was built once: the intervals hold for these builds and not for others." in text
    assert f"sparse, against dense 1.31{TIMES} 1.27 to 1.35 90 % {NOTHING} faster" in text


def test_transfers_layers_and_the_gpu_are_shown():
    profile = make_gpu_profile()
    page = render_report(make_inputs(profile=profile))
    text = _text(page)
    medians = (
        f"dense {milliseconds(profile.dense.median_ms)}, sparse {milliseconds(profile.sparse.median_ms)}, 1.31{TIMES} as fast"
    )
    assert f"With the copies to the device and back, by the wall clock: {medians}" in text
    assert "conv + relu node_conv, node_relu forbidden_kernel 1.20 ms 80.0 %" in text
    assert "copy &lt;format&gt;" in page
    assert "Highest clocks: 1980 MHz, memory 2619 MHz. Power limit: 700 W." in text
    assert f"during 1755 2619 61 412 power cap {NOTHING}" in text
    assert f"end 1500 2619 61 412 {NOTHING} {NOTHING}" in text
    assert f"Persistence mode: on. MIG: {NOTHING}." in text
    assert "sparse tactics forbidden 1.5" in text


def test_nothing_of_it_is_said_of_two_engines_on_a_cpu():
    text = _text(render_report(make_inputs(profile=make_profile())))
    for words in (
        "What each engine brings",
        "copies to the device",
        "Time of each layer",
        "What the GPU was doing",
        "forbidden",
    ):
        assert words not in text
