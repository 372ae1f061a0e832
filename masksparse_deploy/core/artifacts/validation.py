"""The report of the validate stage."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.attribution import Attribution
from masksparse_deploy.core.artifacts.document import Document, Interval, Record, Verdict
from masksparse_deploy.core.artifacts.survival import LayerSurvival

__all__ = ["AccuracyComparison", "Check", "DeviationQuantile", "DeviationTerms", "LayerDeviation", "ValidationReport"]


class Check(Record):
    """One check: `measured` against `bound` (proved) or `tolerance` (chosen); `detail` is a sentence for people.

    `decides` is False for a check that can fail the report but whose "inconclusive" does not stand in the way of a pass.
    """

    name: str
    measured: float | None
    bound: float | None
    tolerance: float | None
    unit: str
    verdict: Verdict
    detail: str
    decides: bool = True


class DeviationTerms(Record):
    """What a deviation of one layer is made of, l2 over one sample: removed weights, rounding of kernels, grids of INT8."""

    mask: float
    rounding: float
    quantization: float


class LayerDeviation(Record):
    """One layer of the sparse engine fed its own input (teacher forced).

    `rounding_ratio` is the largest |engine - reference| / rounding bound over all elements (at most 1 in order); of an INT8
    layer the bound includes half a step of the grid that its output lies on. `deviation` and `deviation_bound` are
    ||sparse engine output - dense layer output|| and its bound, l2 over one sample, for the sample with the largest ratio of
    the two; `tightness` is deviation_bound / deviation, None if that is zero. Of the same sample `bound_terms` add up to
    `deviation_bound`, and `measured_terms` to `deviation` at least. `arithmetic` is what the bound assumes of the kernel.
    """

    layer: str
    node: str
    rounding_ratio: float
    deviation: float
    deviation_bound: float
    tightness: float | None
    verdict: Verdict
    bound_terms: DeviationTerms | None = None
    measured_terms: DeviationTerms | None = None
    arithmetic: str | None = None


class AccuracyComparison(Record):
    """Top-1 of the dense and the sparse engine on the same samples.

    `drop_points` is 100 (dense - sparse) / total; its interval and that of `flip_rate` are exact (Clopper-Pearson);
    accuracies are fractions.
    """

    total: int
    dense_correct: int
    sparse_correct: int
    dense_accuracy: Interval
    sparse_accuracy: Interval
    drop_points: float
    drop_interval: Interval
    disagreement_count: int
    flip_rate: float
    flip_interval: Interval


class DeviationQuantile(Record):
    """How far apart the two engines are on a fresh image, with a stated probability: split conformal, statistics and no bound.

    `quantile` is the ceil((sample_count + 1) confidence)-th smallest l2 distance between the engines' outputs over the
    `sample_count` samples that were drawn with `seed`; None if they are fewer than `needed_count`. `margin` is sqrt(2) times
    that. The other counts are of the `fresh_count` samples that were not drawn: `covered_count` are within the quantile,
    `wide_margin_count` have a wider margin than `margin` in the dense engine, `kept_count` of those keep their class.
    """

    confidence: float
    seed: int
    sample_count: int
    needed_count: int
    quantile: float | None
    margin: float | None
    fresh_count: int
    covered_count: int | None
    wide_margin_count: int | None
    kept_count: int | None
    statement: str
    assumptions: tuple[str, ...]


class ValidationReport(Document):
    """Checks and the verdict: `pass` only if there is at least one deciding check and every deciding check passes."""

    kind: ClassVar[str] = "validation report"

    sparse_engine_sha256: str
    dense_engine_sha256: str
    certificate_sha256: str
    data_sha256: str
    checks: tuple[Check, ...]
    layers: tuple[LayerDeviation, ...]
    accuracy: AccuracyComparison
    verdict: Verdict
    survival: tuple[LayerSurvival, ...] = ()
    deviation: DeviationQuantile | None = None
    attribution: Attribution | None = None
