"""One claim of a certificate: each field computed again, each sentence written again."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from masksparse_deploy.checker import texts
from masksparse_deploy.checker.compare import above, between, equal
from masksparse_deploy.checker.document import CertificateRecord, ClaimRecord
from masksparse_deploy.checker.findings import Finding, verdict
from masksparse_deploy.checker.images import Images
from masksparse_deploy.checker.recursion import data_free_bound
from masksparse_deploy.checker.rules import NoRuleError
from masksparse_deploy.checker.samples import HYBRID, NORMS, RESIDUALS, Propagated
from masksparse_deploy.checker.setting import Setting

__all__ = ["Evidence", "check_claim"]

_UNITS = {texts.LAYERWISE: "output l2 per input l2"}
_IMAGES = "needs the images"
# Rounding of a measured distance, relative to the outputs or to the distance itself.
_DISTANCE = 1e-12
# Largest distances, gains and their medians are computed in float64 on both sides, from outputs whose rounding may cancel:
# a distance of 1e-6 of the outputs' size keeps ten digits of sixteen.
_MEASURED = 1e-6


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence:
    """What claims are held against.

    Attributes:
        certificate: the whole certificate.
        setting: the networks, None where shapes or the structure are not known.
        images: None where none were given.
        run: the recursions on the samples; None without images, or where they cannot be run.
        factor: how much larger the recorded norms make a bound than the checker's.
        obstacle: why there is no run although there are images.
    """

    certificate: CertificateRecord
    setting: Setting | None
    images: Images | None
    run: Propagated | None
    factor: float
    obstacle: str = ""


def check_claim(claim: ClaimRecord, evidence: Evidence) -> list[Finding]:
    """All findings about one claim."""
    check = _Check(claim, evidence)
    if claim.bound is None:
        check.nothing_claimed()
    elif claim.name == texts.LAYERWISE:
        check.layerwise()
    elif claim.name == texts.DATA_FREE:
        check.data_free()
    else:
        check.samples()
    return check.findings


class _Check:
    def __init__(self, claim: ClaimRecord, evidence: Evidence) -> None:
        self._claim = claim
        self._evidence = evidence
        self._subject = f"claim {claim.name}"
        self.findings: list[Finding] = []

    def nothing_claimed(self) -> None:
        claim = self._claim
        self._equal("statement", claim.statement, texts.NOTHING)
        self._equal("method", claim.method, "none")
        self._equal("unit", claim.unit, _UNITS.get(claim.name, "output l2"))
        self._equal("status", claim.status, "inconclusive")
        self._equal("assumptions", claim.assumptions, ())
        for name in ("measured", "tightness", "certified_count", "sample_count"):
            self._equal(name, getattr(claim, name), None)
        self._reason()

    def layerwise(self) -> None:
        claim, layers = self._claim, self._evidence.certificate.layers
        if not layers:
            self._wrong("bound", claim.bound, None, "no layer is listed")
            return
        worst = max(layers, key=lambda layer: layer.difference_norm)
        self._common(texts.layerwise_statement(len(layers)), texts.assumptions_of(claim.name, ""))
        self._equal("bound", claim.bound, worst.difference_norm)
        self._equal("status", claim.status, "useful")
        self._not_exceeded(claim.measured, 1.0)
        self._equal("certified_count", claim.certified_count, None)
        self._tightness()
        start, before, after = texts.layerwise_detail(len(layers), worst.layer)
        run = self._evidence.run
        if claim.measured is None and self._evidence.certificate.unsupported:
            self._equal("sample_count", claim.sample_count, None)
            self._equal("detail", claim.detail, start)  # a network that cannot be computed everywhere was not measured
        elif run is None:
            self._needs_images("measured")
            self._needs_images("sample_count")
            self._detail_without_images(start, before, after, digits=2)
        else:
            self._equal("sample_count", claim.sample_count, len(run.dense))
            gains = {name: float(gains.max()) for name, gains in run.gains.items()}
            self._close("measured", claim.measured, gains.get(worst.node))
            ratios = [layer.difference_norm / gains[layer.node] for layer in layers if gains.get(layer.node, 0.0) > 0]
            self._detail(start, before, after, float(np.median(ratios)) if ratios else None, digits=2)

    def data_free(self) -> None:
        claim, evidence = self._claim, self._evidence
        radius = texts.radius_in(claim.statement)
        if radius is None or claim.bound is None:
            self._wrong(
                "statement", claim.statement, texts.data_free_statement("...", claim.bound or 0.0), "no plain radius in it"
            )
            return
        assumptions = texts.assumptions_of(claim.name, evidence.certificate.data_sha256, radius=radius)
        self._common(texts.data_free_statement(radius, claim.bound), assumptions)
        self._data_free_bound(claim.bound, float(radius))
        if evidence.images is None:
            self._needs_images("radius")
        else:
            largest = max(float(np.sqrt(np.square(image.astype(np.float64)).sum())) for image in evidence.images.images)
            near = {texts.rounded_up(largest * (1 + step)) for step in (-1e-12, 0.0, 1e-12)}
            self._add("radius", radius in near, radius, texts.rounded_up(largest))
        self._end_to_end(remark=False)

    def samples(self) -> None:
        claim, evidence, run = self._claim, self._evidence, self._evidence.run
        assert claim.bound is not None
        assumptions = texts.assumptions_of(claim.name, evidence.certificate.data_sha256, count=claim.sample_count)
        self._common(texts.samples_statement(claim.sample_count, claim.bound), assumptions)
        if run is None:
            self._needs_images("bound")
        elif claim.name not in run.bounds:
            missing = ", ".join(sorted(run.missing | run.missing_norms))
            self._unchecked("bound", f"no independent rule for {missing}")
        else:
            self.findings.append(
                above(self._subject, "bound", claim.bound, float(run.bounds[claim.name].max()), slack=evidence.factor - 1)
            )
        self._end_to_end(remark=True)

    def _common(self, statement: str, assumptions: tuple[str, ...]) -> None:
        claim = self._claim
        self._equal("statement", claim.statement, statement)
        self._equal("unit", claim.unit, _UNITS.get(claim.name, "output l2"))
        setting = self._evidence.setting
        has_masks = setting is not None and setting.pair.has_masks
        self._equal("method", claim.method, texts.method_of(claim.name, has_masks=has_masks))
        self._equal("assumptions", claim.assumptions, assumptions)

    def _end_to_end(self, *, remark: bool) -> None:
        """Status, counts, measured distance, tightness and the sentence made of them."""
        claim, run = self._claim, self._evidence.run
        self._equal("status", claim.status, "useful" if claim.certified_count else "vacuous")
        self._tightness()
        start = texts.end_to_end_detail(claim.certified_count, claim.sample_count, claim.tightness)
        before, after = " Over the samples the bound is ", " times the measured distance (median)."
        if run is None:
            self._not_exceeded(claim.measured, 1 + (claim.measured or 0.0))
            self._needs_images("measured")
            self._needs_images("certified_count")
            if claim.certified_count is None or not claim.sample_count or not 0 <= claim.certified_count <= claim.sample_count:
                self._wrong("sample_count", claim.sample_count, None, f"of which {claim.certified_count} are certified")
            if remark:
                self._detail_without_images(start, before, after, digits=3)
            else:
                self._equal("detail", claim.detail, start)
            return
        distances = np.sqrt(np.square(run.dense - run.sparse).sum(axis=1))
        self._not_exceeded(float(distances.max()), 1 + float(np.abs(run.dense).max(initial=0)))
        self._close("measured", claim.measured, float(distances.max()))
        self._equal("sample_count", claim.sample_count, len(distances))
        self._certified(run)
        if not remark:
            self._equal("detail", claim.detail, start)
        elif claim.name in run.bounds:
            moved = distances > 0
            ratios = run.bounds[claim.name][moved] / distances[moved]
            self._detail(start, before, after, float(np.median(ratios)) if moved.any() else None, digits=3)
        else:
            self._detail_without_images(start, before, after, digits=3)

    def _not_exceeded(self, measured: float | None, size: float) -> None:
        """Whatever the recursions say: what was measured disproves a bound that is smaller."""
        bound = self._claim.bound
        if bound is not None and measured is not None and measured > bound * (1 + _DISTANCE) + _DISTANCE * size:
            self._wrong("bound", bound, measured, "less than what was measured")

    def _certified(self, run: Propagated) -> None:
        claim, factor = self._claim, self._evidence.factor
        if claim.name in run.bounds:
            most, fewest = (int(run.certified(claim.name, by).sum()) for by in (1.0, factor))
        elif claim.name == texts.DATA_FREE and claim.bound is not None:
            ordered = np.sort(run.dense, axis=1)
            most = fewest = int((ordered[:, -1] - ordered[:, -2] > math.sqrt(2) * claim.bound).sum())
        else:
            self._unchecked("certified_count", "no independent bound")
            return
        found = most if most == fewest else f"{fewest} to {most}"
        ok = claim.certified_count is not None and fewest <= claim.certified_count <= most
        self._add("certified_count", ok, claim.certified_count, found)

    def _data_free_bound(self, recorded: float, radius: float) -> None:
        setting = self._evidence.setting
        if setting is None:
            self._needs_images("bound")
            return
        try:
            found = data_free_bound(setting, radius=radius)
        except NoRuleError as error:
            self._unchecked("bound", f"no independent rule for {error}")
        except KeyError as error:
            self._unchecked("bound", f"the shape of {error} is not in the file", needs_images=self._evidence.images is None)
        else:
            self.findings.append(above(self._subject, "bound", recorded, found, slack=self._evidence.factor - 1))

    def _reason(self) -> None:
        """Whether there is really nothing to claim."""
        claim, evidence = self._claim, self._evidence
        if claim.name == texts.LAYERWISE:
            nothing = "The two files hold the same weights and no layer is annotated: nothing is masked."
            self._add("detail", not evidence.certificate.layers and claim.detail == nothing, claim.detail, nothing)
            return
        expected = texts.no_rule(evidence.certificate.unsupported)
        if evidence.certificate.unsupported:
            self._equal("detail", claim.detail, expected)
        elif claim.name in (HYBRID, RESIDUALS, NORMS) and evidence.run is not None and claim.name in evidence.run.bounds:
            finite = bool(np.isfinite(evidence.run.bounds[claim.name]).all())
            self._add("detail", not finite or evidence.run.dense.ndim != 2, claim.detail, "a bound")
        else:
            self._unchecked("detail", f"nothing is claimed, because: {claim.detail}", needs_images=evidence.images is None)

    def _tightness(self) -> None:
        claim = self._claim
        found = claim.bound / claim.measured if claim.measured and claim.bound is not None else None
        self._equal("tightness", claim.tightness, found)

    def _detail(self, start: str, before: str, after: str, ratio: float | None, *, digits: int) -> None:
        claim = self._claim
        if ratio is None:
            self._equal("detail", claim.detail, start)
            return
        printed = texts.printed_in(claim.detail, start + before, after, digits)
        slack = self._evidence.factor - 1 + _MEASURED
        found = f"{start}{before}{ratio:.{digits}g}{after}"
        ok = printed is not None and between(printed, ratio, slack=slack, digits=digits)
        self._add("detail", ok, claim.detail, found)

    def _detail_without_images(self, start: str, before: str, after: str, *, digits: int) -> None:
        """The number in the remark cannot be checked; everything else can."""
        detail = self._claim.detail
        ok = detail == start or texts.printed_in(detail, start + before, after, digits) is not None
        if ok and detail != start:
            self._needs_images("detail")
        else:
            self._add("detail", ok, detail, start)

    def _close(self, what: str, recorded: float | None, found: float | None) -> None:
        self.findings.append(equal(self._subject, what, recorded, found, rounding=_MEASURED))

    def _equal(self, what: str, recorded: Any, found: Any) -> None:
        self.findings.append(equal(self._subject, what, recorded, found))

    def _add(self, what: str, ok: bool, recorded: Any, found: Any) -> None:
        self.findings.append(Finding(subject=self._subject, what=what, status=verdict(ok), recorded=recorded, found=found))

    def _wrong(self, what: str, recorded: Any, found: Any, reason: str) -> None:
        self.findings.append(
            Finding(subject=self._subject, what=what, status="wrong", recorded=recorded, found=found, reason=reason)
        )

    def _needs_images(self, what: str) -> None:
        if self._evidence.images is None:
            self._unchecked(what, _IMAGES, needs_images=True)
        else:
            self._unchecked(what, self._evidence.obstacle)

    def _unchecked(self, what: str, reason: str, *, needs_images: bool = False) -> None:
        self.findings.append(
            Finding(subject=self._subject, what=what, status="not checked", reason=reason, needs_images=needs_images)
        )
