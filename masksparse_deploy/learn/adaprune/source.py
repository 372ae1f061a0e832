"""Which N:M suits a network whose weights are sparse already, without structure."""

import re
from collections.abc import Sequence

import numpy as np
from scipy.stats import binom
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import MAX_M, NMPattern
from masksparse_deploy.learn.eligibility import EligibleLayer

__all__ = ["automatic_m", "choose_kept", "pattern_for_source"]

# What the function of the authors' code takes; its command line takes 0.1.
CONFIDENCE = 0.95


def choose_kept(zero_fraction: float, m: int, *, confidence: float = CONFIDENCE) -> int:
    """How many weights of every M to keep, if a fraction of them is zero at random places.

    The zeros among M weights then have the binomial distribution B(M, p), and M - N is the largest k for which
    P(B(M, p) >= k) > confidence: so many groups lose nothing but zeros. Hubara et al. 2021 (arXiv 2102.08124), in the form of
    their code (`extract_topk` in AdaPrune/utils/adaprune.py), where N is called topk.

    Args:
        zero_fraction: p, of the weights.
        m: M.
        confidence: the least share of groups that is to lose nothing.

    Returns:
        N, from 1 to M; 1 also where every weight is zero, as a group that keeps nothing is no pattern.
    """
    return _kept([1.0], [zero_fraction], m, confidence)


def pattern_for_source(
    model: nn.Module, layers: Sequence[EligibleLayer], m: int, *, confidence: float = CONFIDENCE
) -> NMPattern:
    """The N:M that `choose_kept` finds for the zeros of a network, over the groups of all layers together.

    A mask set has one pattern, and layers have zeros in different fractions: counted is the expected share of all groups
    that lose nothing, each layer with its own fraction.

    Args:
        model: the network.
        layers: those to mask.
        m: M.
        confidence: see `choose_kept`.

    Raises:
        UsageError: there are too few zeros for any N < M.
    """
    weights = [model.get_parameter(layer.weight_name).detach().numpy() for layer in layers]
    zero_fractions = [1.0 - np.count_nonzero(weight) / weight.size for weight in weights]
    sizes = np.array([weight.size for weight in weights], dtype=np.float64)
    kept = _kept((sizes / sizes.sum()).tolist(), zero_fractions, m, confidence)
    if kept == m:
        overall = float(np.average(zero_fractions, weights=sizes))
        raise UsageError(
            f"mask.pattern auto:{m}: {overall:.1%} of the weights to mask are zero, too few for any N of {m}; an automatic "
            f"pattern is for a network that is sparse already. Name the pattern, for example {max(1, m // 2)}:{m}"
        )
    return NMPattern(n=kept, m=m)


def automatic_m(options: MaskOptions) -> int | None:
    """M of a pattern "auto:M", whose N follows from the zeros of the network (`pattern_for_source`); None for any other one.

    Raises:
        UsageError: M is no length of a group, or another option asks for what an automatic pattern cannot be.
    """
    match = re.fullmatch(r"\s*auto\s*:\s*(\d+)\s*", options.pattern)
    if match is None:
        return None
    m = int(match[1])
    if not 2 <= m <= MAX_M:
        raise UsageError(f"mask.pattern auto:{m}: M must be from 2 to {MAX_M}; for example auto:8")
    if options.method == "transposable":
        raise UsageError(
            f"mask.pattern auto:{m} counts zeros along the input channels only, which says nothing about transposable masks; "
            f"name the pattern, for example T{m // 2}:{m}"
        )
    if options.assignment is not None:
        raise UsageError(f"mask.pattern auto:{m}: mask.assignment is for one pattern; give the one that it was made for")
    return m


def _kept(shares: Sequence[float], zero_fractions: Sequence[float], m: int, confidence: float) -> int:
    """N for groups of which `shares` have zeros in these fractions."""

    def lossless_share(zero_count: int) -> float:
        # sf(k) is P(B > k)
        pairs = zip(shares, zero_fractions, strict=True)
        return sum(share * float(binom.sf(zero_count - 1, m, fraction)) for share, fraction in pairs)

    return m - max(k for k in range(m) if k == 0 or lossless_share(k) > confidence)
