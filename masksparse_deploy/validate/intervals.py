"""Exact confidence intervals for shares, and for the difference of two accuracies on the same samples."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import beta

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.validation import AccuracyComparison
from masksparse_deploy.core.errors import UsageError

__all__ = ["compare_accuracy", "drop_interval", "share_interval"]


def share_interval(count: int, total: int, confidence: float) -> Interval:
    """The two-sided Clopper-Pearson interval of a share after `count` of `total` independent samples.

    Its coverage is at least `confidence` for every true share (Clopper and Pearson, Biometrika 26, 1934): the ends are
    quantiles of Beta(count, total - count + 1) and Beta(count + 1, total - count).

    Raises:
        UsageError: not 0 <= count <= total, total 0, or a confidence outside (0, 1).
    """
    _require_counts(count, total, confidence)
    half_error = (1 - confidence) / 2
    low = float(beta.ppf(half_error, count, total - count + 1)) if count else 0.0
    high = float(beta.isf(half_error, count + 1, total - count)) if count < total else 1.0
    return Interval(low=low, high=high, confidence=confidence)


def drop_interval(lost: int, won: int, total: int, confidence: float) -> Interval:
    """An interval, in percentage points, of the accuracy that the dense network has ahead of the sparse one.

    On the same samples the drop is the difference of two shares: samples that only the dense network gets right (`lost`) and
    samples that only the sparse one gets right (`won`). Each gets a Clopper-Pearson interval at half the error, so that both
    hold together with at least `confidence` (Bonferroni); the drop then lies between low(lost) - high(won) and
    high(lost) - low(won). This is conservative: the interval is wider than an optimal one, never too narrow.

    Raises:
        UsageError: negative counts, lost + won > total, or a confidence outside (0, 1).
    """
    if lost + won > total:
        raise UsageError(f"{lost} lost and {won} won samples are more than the {total} samples there are")
    each = (1 + confidence) / 2
    losses, wins = share_interval(lost, total, each), share_interval(won, total, each)
    return Interval(low=100 * (losses.low - wins.high), high=100 * (losses.high - wins.low), confidence=confidence)


def compare_accuracy(
    dense_classes: npt.NDArray[Any], sparse_classes: npt.NDArray[Any], labels: npt.NDArray[np.int64], confidence: float
) -> AccuracyComparison:
    """Compare the top-1 classes that two engines give for the same samples.

    Args:
        dense_classes: integer (count,), the dense engine's top-1.
        sparse_classes: integer (count,), the sparse engine's top-1.
        labels: int64 (count,).
        confidence: coverage of each interval, as 0.95.

    Raises:
        UsageError: no samples, or arrays of different lengths.
    """
    if not len(dense_classes) == len(sparse_classes) == len(labels):
        raise UsageError(f"{len(dense_classes)} dense and {len(sparse_classes)} sparse classes for {len(labels)} labels")
    total = len(labels)
    dense_right, sparse_right = dense_classes == labels, sparse_classes == labels
    lost, won = int((dense_right & ~sparse_right).sum()), int((sparse_right & ~dense_right).sum())
    flips = int((dense_classes != sparse_classes).sum())
    return AccuracyComparison(
        total=total,
        dense_correct=int(dense_right.sum()),
        sparse_correct=int(sparse_right.sum()),
        dense_accuracy=share_interval(int(dense_right.sum()), total, confidence),
        sparse_accuracy=share_interval(int(sparse_right.sum()), total, confidence),
        drop_points=100 * (lost - won) / total,
        drop_interval=drop_interval(lost, won, total, confidence),
        disagreement_count=flips,
        flip_rate=flips / total,
        flip_interval=share_interval(flips, total, confidence),
    )


def _require_counts(count: int, total: int, confidence: float) -> None:
    if total < 1 or not 0 <= count <= total:
        raise UsageError(f"{count} of {total} is not a share: at least one sample and 0 <= count <= total are needed")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is not between 0 and 1, for example 0.95")
