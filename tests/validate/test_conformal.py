"""The conformal quantile of the deviation: what it covers, counted by simulation, and faults that the count finds."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.validate import conformal
from masksparse_deploy.validate.conformal import (
    calibration_samples,
    conformal_quantile,
    conformal_rank,
    deviation_quantile,
    needed_count,
)

Rank = Callable[[int, float], int]
TRIALS = 40_000


def is_covered(rank: Rank, count: int, confidence: float) -> bool:
    """Whether fresh samples stay within the quantile as often as promised, up to an error of one in 10^9 of the simulation."""
    generator = np.random.default_rng(0)
    draws = generator.standard_exponential((TRIALS, count + 1))
    quantiles = np.sort(draws[:, :count], axis=1)[:, rank(count, confidence) - 1]
    covered = int((draws[:, count] <= quantiles).sum())
    return covered >= int(binom.ppf(1e-9, TRIALS, confidence))


@pytest.mark.parametrize(("count", "confidence"), [(9, 0.9), (19, 0.95), (20, 0.95), (39, 0.95), (4, 0.8), (33, 0.9)])
def test_fresh_samples_are_covered_as_often_as_promised(count: int, confidence: float) -> None:
    assert is_covered(conformal_rank, count, confidence)


WRONG: dict[str, tuple[Rank, int, float]] = {
    "one too small": (lambda n, c: conformal_rank(n, c) - 1, 19, 0.95),
    "one too small of few": (lambda n, c: conformal_rank(n, c) - 1, 4, 0.8),
    "without the fresh sample": (lambda n, c: math.ceil(n * c), 20, 0.95),
    "rounded down": (lambda n, c: math.floor((n + 1) * c), 12, 0.9),
}


@pytest.mark.parametrize("fault", WRONG)
def test_a_rank_that_is_off_by_one_is_caught(fault: str) -> None:
    wrong, count, confidence = WRONG[fault]
    assert not is_covered(wrong, count, confidence)
    assert is_covered(conformal_rank, count, confidence)


@given(st.integers(1, 2000), st.sampled_from([0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.999]))
def test_the_rank_is_the_smallest_that_suffices(count: int, confidence: float) -> None:
    rank = conformal_rank(count, confidence)
    # k / (count + 1) is the probability; 1e-12 for the division
    assert rank / (count + 1) >= confidence - 1e-12
    assert (rank - 1) / (count + 1) < confidence - 1e-12
    assert (rank <= count) == (count >= needed_count(confidence))


def test_the_decimal_number_counts_not_its_binary_neighbour() -> None:
    assert (conformal_rank(19, 0.95), conformal_rank(99, 0.07), needed_count(0.95), needed_count(0.99)) == (19, 7, 19, 99)
    assert conformal_quantile(np.arange(19.0)[::-1], 0.95) == 18.0
    assert conformal_quantile(np.arange(18.0), 0.95) is None


@pytest.mark.parametrize(
    ("count", "confidence", "message"),
    [(0, 0.9, "needs at least one sample; give more test images"), (3, 95, "confidence 95 is not between 0 and 1")],
)
def test_refused(count: int, confidence: float, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        conformal_rank(count, confidence)


def outputs(count: int, noise: float, seed: int = 0) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    generator = np.random.default_rng(seed)
    dense = 3 * generator.standard_normal((count, 5))
    return dense, dense + noise * generator.standard_normal((count, 5))


def found(count: int = 200, noise: float = 0.3, **options: Any) -> Any:
    gates = Gates(**options)
    return deviation_quantile(*outputs(count, noise), calibration_samples(count, gates), gates)


def test_samples_are_drawn_with_their_own_seed() -> None:
    first, again, other = (calibration_samples(101, Gates(conformal_seed=seed)) for seed in (1, 1, 2))
    assert first.sum() == 51
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    np.testing.assert_array_equal(first, calibration_samples(101, Gates(conformal_seed=1, confidence=0.9)))


def test_sample_sizes_and_counts_are_stated() -> None:
    result = found(conformal_share=0.3, conformal_confidence=0.9, conformal_seed=7)
    assert (result.sample_count, result.fresh_count, result.seed, result.needed_count) == (60, 140, 7, 9)
    assert result.margin == pytest.approx(math.sqrt(2) * result.quantile)
    assert 0 < result.kept_count <= result.wide_margin_count < 140
    assert 0.8 * 140 < result.covered_count <= 140
    assert "With probability at least 90 %, over the draw of the 60 samples and of a fresh image like them" in result.statement
    assert "not a bound for any one image, and not a probability given the margin" in result.statement
    assert any("exchangeable" in text for text in result.assumptions)
    assert any("seed 7" in text for text in result.assumptions)


def test_within_the_quantile_a_wide_margin_keeps_the_class() -> None:
    dense, sparse = outputs(400, 0.5)
    gates = Gates()
    calibration = calibration_samples(400, gates)
    result = deviation_quantile(dense, sparse, calibration, gates)
    assert result.quantile is not None and result.margin is not None
    ordered = np.sort(dense, axis=1)
    wide = ordered[:, -1] - ordered[:, -2] > result.margin
    near = np.linalg.norm(dense - sparse, axis=1) <= result.quantile
    assert (dense.argmax(1) == sparse.argmax(1))[wide & near].all()
    assert (wide & near).sum() > 50


@pytest.mark.parametrize(
    ("separate", "words"), [(False, "decided on all samples, these among them"), (True, "on the other samples")]
)
def test_whether_the_gates_saw_the_samples_is_said(separate: bool, words: str) -> None:
    assert any(words in text for text in found(conformal_separate=separate).assumptions)


def test_too_few_samples_give_no_number() -> None:
    result = found(count=30)
    assert (result.quantile, result.margin, result.covered_count, result.kept_count) == (None, None, None, None)
    assert "15 samples are too few for a quantile at 95 %; it takes 19 or more" in result.statement
    assert "--conformal-confidence" in result.statement


def test_a_planted_margin_without_its_factor_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    # two logits that move towards each other by the whole quantile, q / sqrt(2) each, close a gap of sqrt(2) q
    dense = np.tile([1.2, 0.0], (40, 1))
    sparse = dense + np.array([-1.0, 1.0]) / math.sqrt(2)
    gates = Gates()
    monkeypatch.setattr(conformal.math, "sqrt", lambda value: 1.0 if value == 2 else value**0.5)
    result = deviation_quantile(dense, sparse, calibration_samples(40, gates), gates)
    assert result.wide_margin_count == 20 and result.kept_count == 0
    monkeypatch.undo()
    assert deviation_quantile(dense, sparse, calibration_samples(40, gates), gates).wide_margin_count == 0
