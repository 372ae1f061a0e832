import pytest

from masksparse_deploy.report.headline import make_headline
from tests.report.artifacts import make_inputs
from tests.report.engine_artifacts import make_profile
from tests.report.validation_artifacts import make_certificate, make_validation


@pytest.mark.parametrize(
    ("profile", "sentence"),
    [
        (make_profile(1.42, 0.02), "Deploy it: 1.42\N{MULTIPLICATION SIGN} as fast as the dense engine, within all gates."),
        (make_profile(1.01, 0.02), "All checks passed, but it is not faster than the dense engine on this device."),
        (make_profile(1.0, 0.02), "All checks passed, but it is not faster than the dense engine on this device."),
        (make_profile(0.9, 0.02), "All checks passed, but it is slower than the dense engine on this device."),
        (
            make_profile(1.42, 0.02, ("the clock is too coarse",)),
            "All checks passed. Whether it is faster has not been established.",
        ),
        (None, "All checks passed. Whether it is faster has not been established."),
    ],
)
def test_a_pass_says_whether_it_is_worth_it(profile, sentence):
    headline = make_headline(make_inputs(profile=profile))
    assert (headline.verdict, headline.tone, headline.sentence) == ("pass", "good", sentence)
    assert headline.reasons == ()


def test_a_failure_names_what_failed():
    headline = make_headline(make_inputs(validation=make_validation("fail")))
    assert headline.sentence == "Do not deploy: 1 of 9 checks failed."
    assert headline.reasons == ("changed predictions: 4 of 597 predictions changed; more than the gate of 0.001 allows",)


def test_inconclusive_is_not_called_safe():
    headline = make_headline(make_inputs(validation=make_validation("inconclusive")))
    assert headline.tone == "open"
    assert headline.sentence.startswith("Not shown to be safe")
    # the check that does not decide is not a reason
    assert [reason.partition(":")[0] for reason in headline.reasons] == ["changed predictions"]


def test_an_invalid_run_shows_no_speedup():
    speed = make_headline(make_inputs(profile=make_profile(1.42, 0.02, ("the clock is too coarse",)))).figures[0]
    assert speed.value == "invalid"
    assert "the clock is too coarse" in speed.notes
    assert not any("1.42" in note for note in speed.notes)


def test_the_three_figures():
    speed, accuracy, proof = make_headline(make_inputs()).figures
    assert speed.value == "1.00\N{MULTIPLICATION SIGN}"
    assert accuracy.value == "\N{MINUS SIGN}0.17"
    assert "gate: at most 0.5 points lost" in accuracy.notes
    assert (proof.value, proof.tone) == ("9 of 9", "good")
    assert "end-to-end, hybrid: vacuous, certifies 0 of 100 images" in proof.notes
    assert not any("data-free" in note for note in proof.notes)  # the smallest one is enough here


def test_without_a_bound_of_the_outputs_the_proof_says_so():
    certificate = make_certificate().model_copy(update={"smallest": None})
    assert "end-to-end: inconclusive" in make_headline(make_inputs(certificate=certificate)).figures[2].notes


@pytest.mark.parametrize(("verdict", "tone"), [("fail", "bad"), ("inconclusive", "open")])
def test_a_layer_that_is_not_covered_has_not_failed(verdict, tone):
    validation = make_validation()
    first = validation.layers[0].model_copy(update={"verdict": verdict})
    changed = validation.model_copy(update={"layers": (first, *validation.layers[1:])})
    proof = make_headline(make_inputs(validation=changed)).figures[2]
    assert (proof.value, proof.tone) == ("8 of 9", tone)
