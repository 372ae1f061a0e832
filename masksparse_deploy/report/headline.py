"""The first screen: what to do, and the three figures that a decision needs."""

from dataclasses import dataclass
from typing import Literal

from masksparse_deploy.core.artifacts.certificate import END_TO_END, Certificate
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.report.formats import NOTHING, interval, percent, signed, times
from masksparse_deploy.report.inputs import ReportInputs

__all__ = ["Figure", "Headline", "make_headline", "speed_is_valid"]

Tone = Literal["good", "bad", "open"]

_TONES: dict[Verdict, Tone] = {"pass": "good", "fail": "bad", "inconclusive": "open"}


@dataclass(frozen=True)
class Figure:
    """One large figure: a question, its answer, and what qualifies the answer."""

    question: str
    value: str
    unit: str
    notes: tuple[str, ...]
    tone: Tone


@dataclass(frozen=True)
class Headline:
    """The verdict in a word and a sentence, what stands against a pass, and the three figures."""

    verdict: str
    tone: Tone
    sentence: str
    reasons: tuple[str, ...]
    figures: tuple[Figure, ...]


def make_headline(inputs: ReportInputs) -> Headline:
    """Put the artifacts' verdicts into words; nothing is decided here."""
    figures = (
        _speed(inputs.profile, inputs.rewrite),
        _accuracy(inputs.validation),
        _proof(inputs.validation, inputs.certificate),
    )
    validation = inputs.validation
    if validation is None:
        return Headline("not finished", "open", "There is no verdict yet: the validate stage has not run.", (), figures)
    against = tuple(
        f"{check.name}: {check.detail}"
        for check in validation.checks
        if check.verdict == "fail" or (check.verdict == "inconclusive" and check.decides)
    )
    if validation.verdict == "fail":
        count = sum(check.verdict == "fail" for check in validation.checks)
        sentence = f"Do not deploy: {count} of {len(validation.checks)} checks failed."
        return Headline("fail", "bad", sentence, against, figures)
    if validation.verdict == "inconclusive":
        sentence = "Not shown to be safe: nothing failed, but not everything that decides could be shown."
        return Headline("inconclusive", "open", sentence, against, figures)
    return Headline("pass", "good", _pass_sentence(inputs.profile), (), figures)


def speed_is_valid(profile: ProfileReport) -> bool:
    """Whether the run's figures may be used."""
    return not profile.invalid_because


def _pass_sentence(profile: ProfileReport | None) -> str:
    if profile is None or not speed_is_valid(profile):
        return "All checks passed. Whether it is faster has not been established."
    ends = profile.speedup.interval
    if ends.low > 1:
        return f"Deploy it: {times(profile.speedup.ratio)} as fast as the dense engine, within all gates."
    if ends.high < 1:
        return "All checks passed, but it is slower than the dense engine on this device."
    return "All checks passed, but it is not faster than the dense engine on this device."


def _speed(profile: ProfileReport | None, rewrite: RewriteReport | None) -> Figure:
    question = "How much faster?"
    if profile is None:
        return Figure(question, NOTHING, "", ("The profile stage has not run.",), "open")
    if not speed_is_valid(profile):
        return Figure(question, "invalid", "", ("This run must not be used, because:", *profile.invalid_because), "open")
    ends = profile.speedup.interval
    notes = [f"{percent(ends.confidence, 0)} interval {interval(ends)}"]
    tone: Tone = "good"
    if ends.low <= 1:
        tone = "open" if ends.high >= 1 else "bad"
        notes.append(_sentence(profile.sparse_kernels))
        if ends.high < 1 and rewrite is not None and rewrite.rewritten_sha256 is not None:
            notes.append("Layers were rewritten, and yet it is slower than the dense engine here: deploy the dense one.")
    return Figure(question, times(profile.speedup.ratio), "of the dense speed", tuple(notes), tone)


def _accuracy(validation: ValidationReport | None) -> Figure:
    question = "What happens to accuracy?"
    if validation is None:
        return Figure(question, NOTHING, "", ("The validate stage has not run.",), "open")
    found = validation.accuracy
    dense, sparse = (percent(correct / found.total, 2) for correct in (found.dense_correct, found.sparse_correct))
    notes = [
        f"{dense} → {sparse} of {found.total:,} samples",
        f"{percent(found.drop_interval.confidence, 0)} interval {signed(-found.drop_interval.high)} to "
        f"{signed(-found.drop_interval.low)} points",
    ]
    gates = [check for check in validation.checks if check.name == "accuracy drop"]
    tone: Tone = "open"
    if gates:
        tone = _TONES[gates[0].verdict]
        notes.append(f"gate: at most {gates[0].tolerance:g} points lost")
    return Figure(question, signed(-found.drop_points), "points", tuple(notes), tone)


def _proof(validation: ValidationReport | None, certificate: Certificate | None) -> Figure:
    question = "Proved how?"
    if validation is None or certificate is None:
        missing = "validate" if certificate is not None else "certify"
        return Figure(question, NOTHING, "", (f"The {missing} stage has not run.",), "open")
    layers = validation.layers
    within = sum(layer.verdict == "pass" for layer in layers)
    notes = ["changed layers stay within a bound that is proved, not estimated"] if layers else ["no layer was compared"]
    notes += _end_to_end(certificate)
    tone: Tone = "good" if layers and within == len(layers) else "open"
    if any(layer.verdict == "fail" for layer in layers):
        tone = "bad"
    return Figure(question, f"{within} of {len(layers)}", "layers", tuple(notes), tone)


def _end_to_end(certificate: Certificate) -> list[str]:
    """The claim about the outputs with the smallest bound, or that there is none."""
    found = [claim for claim in certificate.claims if claim.name == certificate.smallest]
    if not found:
        return ["end-to-end: inconclusive"] if any(claim.name in END_TO_END for claim in certificate.claims) else []
    (claim,) = found
    images = "" if claim.certified_count is None else f", certifies {claim.certified_count} of {claim.sample_count} images"
    return [f"{claim.name}: {claim.status}{images}"]


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")
