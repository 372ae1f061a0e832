"""A bound of the two engines' distance that holds for a fresh sample with a stated probability: split conformal prediction.

It covers mask, rounding, choice of kernels and whatever else there is at once, because it looks at the deployed engines only.
It is statistics about samples like those, not a proof about one.
"""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.validation import DeviationQuantile
from masksparse_deploy.core.config import Gates
from masksparse_deploy.core.decimals import rounded_up
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.validate.outputs import row_norms

__all__ = ["calibration_samples", "conformal_quantile", "conformal_rank", "deviation_quantile", "needed_count"]

Array = npt.NDArray[Any]


def conformal_rank(count: int, confidence: float) -> int:
    """Which of `count` deviations in ascending order, counted from 1, bounds a fresh one: ceil((count + 1) confidence).

    A fresh deviation that is exchangeable with the `count` others is equally likely to take any place among all count + 1, so
    it is at most the k-th smallest of the others with probability >= k / (count + 1) (Vovk, Gammerman and Shafer, Algorithmic
    Learning in a Random World, 2005; Lei et al., JASA 113, 2018, theorem 2.2). The rank may be above `count`: then there are
    too few.

    Raises:
        UsageError: no samples, or a confidence outside (0, 1).
    """
    if count < 1:
        raise UsageError("a quantile of deviations needs at least one sample; give more test images")
    if not 0 < confidence < 1:
        raise UsageError(f"confidence {confidence} is not between 0 and 1, for example 0.95")
    # the decimal number that was written, so that (19 + 1) 0.95 is 19
    return math.ceil((count + 1) * Fraction(str(confidence)))


def conformal_quantile(deviations: Array, confidence: float) -> float | None:
    """The deviation that a fresh sample stays within with probability >= `confidence`; None if there are too few samples.

    Args:
        deviations: (count,), of samples that are exchangeable with the fresh one.
        confidence: 1 - alpha.
    """
    rank = conformal_rank(len(deviations), confidence)
    return float(np.sort(deviations)[rank - 1]) if rank <= len(deviations) else None


def needed_count(confidence: float) -> int:
    """The smallest number of samples for which there is such a quantile: ceil(confidence / (1 - confidence))."""
    share = Fraction(str(confidence))
    return math.ceil(share / (1 - share))


def calibration_samples(count: int, gates: Gates) -> npt.NDArray[np.bool_]:
    """Which of `count` samples the quantile is taken from: drawn at random, with a seed of their own; boolean (count,)."""
    chosen = np.zeros(count, dtype=np.bool_)
    size = math.ceil(count * gates.conformal_share)
    chosen[np.random.default_rng(gates.conformal_seed).permutation(count)[:size]] = True
    return chosen


def deviation_quantile(dense: Array, sparse: Array, calibration: npt.NDArray[np.bool_], gates: Gates) -> DeviationQuantile:
    """The conformal quantile of ||dense - sparse||, and what it says about predictions.

    Args:
        dense: (count, classes), finite outputs of the dense engine.
        sparse: the same of the sparse engine.
        calibration: which samples the quantile is taken from; the others serve as fresh ones.
        gates: for the confidence and the seed that `calibration` was drawn with.
    """
    deviations = row_norms(dense.astype(np.float64) - sparse)
    count = int(calibration.sum())
    quantile = conformal_quantile(deviations[calibration], gates.conformal_confidence)
    fresh = ~calibration
    covered = expected = kept = None
    if quantile is not None:
        ordered = np.sort(dense[fresh].astype(np.float64), axis=1)
        wide = ordered[:, -1] - ordered[:, -2] > math.sqrt(2) * quantile
        same = dense[fresh].argmax(1) == sparse[fresh].argmax(1)
        covered, expected, kept = (int(found.sum()) for found in (deviations[fresh] <= quantile, wide, wide & same))
    return DeviationQuantile(
        confidence=gates.conformal_confidence,
        seed=gates.conformal_seed,
        sample_count=count,
        needed_count=needed_count(gates.conformal_confidence),
        quantile=quantile,
        margin=None if quantile is None else math.sqrt(2) * quantile,
        fresh_count=int(fresh.sum()),
        covered_count=covered,
        wide_margin_count=expected,
        kept_count=kept,
        statement=_statement(quantile, count, gates),
        assumptions=_assumptions(gates),
    )


def _statement(quantile: float | None, count: int, gates: Gates) -> str:
    level, needed = 100 * gates.conformal_confidence, needed_count(gates.conformal_confidence)
    if quantile is None:
        return (
            f"Nothing is said: {count} samples are too few for a quantile at {level:.6g} %; it takes {needed} or more. Give "
            "more test images, or ask for a lower --conformal-confidence."
        )
    distance, margin = rounded_up(quantile), rounded_up(math.sqrt(2) * quantile)
    return (
        f"With probability at least {level:.6g} %, over the draw of the {count} samples and of a fresh image like them, the "
        f"outputs of the dense and the sparse engine for the fresh image are at most {distance:.6g} apart (l2), and the image "
        f"does not both have a margin above {margin:.6g} in the dense engine and change its class. This is statistics, not a "
        "bound for any one image, and not a probability given the margin."
    )


def _assumptions(gates: Gates) -> tuple[str, ...]:
    decided = (
        "The gates were decided on the other samples, so that passing them says nothing about these."
        if gates.conformal_separate
        else "The gates were decided on all samples, these among them: each statement holds with its own confidence, all of "
        "them together with 1 minus the sum of what is missing in each."
    )
    return (
        "A fresh image is exchangeable with the samples: drawn in the same way, independently of them and of the masks.",
        f"The samples were drawn at random from the test images with seed {gates.conformal_seed}.",
        decided,
    )
