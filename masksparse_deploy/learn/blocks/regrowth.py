"""Which pruned blocks come back for a while: how many as training goes on, and which of them by chance."""

import math

import numpy as np
import numpy.typing as npt

__all__ = ["TEMPERATURE", "pruned_share", "regrow", "regrown_count", "regrowth_probabilities"]

# tau, as published.
TEMPERATURE = 1.0


def pruned_share(progress: float, *, start: float, end: float) -> float:
    """p_e / p = ((progress - start) / (end - start))^3, clamped to [0, 1]: the share of the pruning that is final.

    Args:
        progress: share of the training that is done.
        start: progress up to which all that is pruned comes back.
        end: progress from which nothing does.
    """
    if progress >= end:
        return 1.0
    if progress <= start:
        return 0.0
    return ((progress - start) / (end - start)) ** 3


def regrown_count(pruned_count: int, share: float) -> int:
    """How many of a group's `pruned_count` pruned blocks come back: int((p - p_e) C_in) with p C_in blocks pruned."""
    return math.floor(pruned_count * (1 - share))


def regrowth_probabilities(scores: npt.NDArray[np.float64], *, temperature: float = TEMPERATURE) -> npt.NDArray[np.float64]:
    """softmax(s / ||s||_2 / tau) over the pruned blocks of every group, float64 in the shape of `scores` (groups, pruned)."""
    norms = np.linalg.norm(scores, axis=1, keepdims=True)
    scaled = scores / np.where(norms > 0, norms, 1.0) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def regrow(probabilities: npt.NDArray[np.float64], count: int, generator: np.random.Generator) -> npt.NDArray[np.int64]:
    """Draw `count` blocks of every group without replacement, each draw by the probabilities of those that are left.

    The smallest of exponential variables with rates p_c is c with probability p_c, and the next smallest is drawn from the
    others alike (Efraimidis and Spirakis 2006).

    Args:
        probabilities: float64 (groups, pruned), positive, rows that sum to 1.
        count: how many, at most those there are.
        generator: where chance comes from.

    Returns:
        int64 (groups, count), places within the rows, in the order they were drawn.
    """
    waiting = generator.standard_exponential(probabilities.shape) / probabilities
    return np.argsort(waiting, axis=1, kind="stable")[:, :count]
