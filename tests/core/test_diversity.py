import itertools
import math

import numpy as np
import pytest

from masksparse_deploy.core.diversity import (
    block_diversity,
    count_transposable_tiles,
    paper_transposable_tiles,
    pattern_diversity,
    unstructured_diversity,
)
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern


def counted_one_by_one(n: int, m: int) -> int:
    rows = NMPattern(n=n, m=m).codebook().astype(np.int64)
    return sum(1 for chosen in itertools.product(rows, repeat=m) if (np.sum(chosen, axis=0) == n).all())


@pytest.mark.parametrize(("n", "m"), [(n, m) for m in range(1, 5) for n in range(1, m + 1)] + [(1, 5), (2, 5)])
def test_tiles_are_counted_exactly(n: int, m: int) -> None:
    assert count_transposable_tiles(n, m) == counted_one_by_one(n, m)


@pytest.mark.parametrize(
    ("n", "m", "count"),
    # Matrices of zeros and ones with all line sums n: OEIS A001499 (2), A058528 (4), A058527 (half of the size).
    [
        (2, 9, 14_398_171_200),
        (3, 6, 297_200),
        (4, 7, 68_938_800),
        (4, 12, 65_599_839_591_251_908_982_712_750),
        (4, 8, 116_963_796_250),
        (5, 10, 6_736_218_287_430_460_752),
        (6, 12, 64_051_375_889_927_380_035_549_804_336),
    ],
)
def test_known_counts(n: int, m: int, count: int) -> None:
    assert count_transposable_tiles(n, m) == count


@pytest.mark.parametrize("m", range(2, 10))
def test_ones_and_zeros_can_change_places(m: int) -> None:
    for n in range(1, m):
        assert count_transposable_tiles(n, m) == count_transposable_tiles(m - n, m)


@pytest.mark.slow
def test_the_largest_count() -> None:
    count = count_transposable_tiles(8, 16)
    # Also OEIS A058527. As M grows it is e^(1/2) less than rows and columns would have it that do not know of one another
    # (Canfield and McKay 2005); what is missing shrinks with 1 / M.
    assert count == 34_812_290_428_176_298_285_394_893_936_773_707_951_192_224_124_239_796_250
    independent = math.comb(16, 8) ** 32 / math.comb(256, 128)
    assert count / independent == pytest.approx(math.exp(-0.5), rel=1 / 16)


def test_the_papers_formula_counts_too_many_but_for_a_single_zero_in_a_row() -> None:
    assert paper_transposable_tiles(2, 4) == 144
    assert paper_transposable_tiles(4, 8) == 17_557_585_920_000
    for m in range(2, 10):
        assert paper_transposable_tiles(m - 1, m) == count_transposable_tiles(m - 1, m)
        for n in range(1, m - 1):
            assert paper_transposable_tiles(n, m) > count_transposable_tiles(n, m)


@pytest.mark.parametrize(
    ("text", "by_paper", "log10"),
    # By the formulas of Hubara et al. 2021, and exactly, of 8 x 8 weights.
    [
        ("1:2", False, 9.63),
        ("2:4", False, 12.45),
        ("4:8", False, 14.76),
        ("T1:2", True, 4.82),
        ("T1:2", False, 4.82),
        ("T2:4", True, 8.63),
        ("T2:4", False, 7.82),
        ("T4:8", True, 13.24),
        ("T4:8", False, 11.07),
    ],
)
def test_diversity_of_64_weights(text: str, by_paper: bool, log10: float) -> None:
    found = pattern_diversity(NMPattern.parse(text), 64, by_paper=by_paper)
    assert math.log10(found) == pytest.approx(log10, abs=0.005)


def test_diversity_of_the_other_structures() -> None:
    assert unstructured_diversity(64, 32) == 1_832_624_140_942_590_534
    assert pattern_diversity(NMPattern.parse("2:4"), 64) == 6**16
    assert block_diversity(64, 32, block=16, kept=16) == math.comb(32, 16) ** 4
    # The more is asked of a mask, the fewer there are.
    layer = 64 * 64
    counts = [
        unstructured_diversity(layer, layer // 2),
        *(pattern_diversity(NMPattern.parse(text), layer) for text in ("4:8", "2:4", "T4:8", "1:2", "T2:4", "T1:2")),
        block_diversity(64, 64, block=4, kept=32),
    ]
    assert counts == sorted(counts, reverse=True)


def test_what_cannot_be_counted_is_refused() -> None:
    with pytest.raises(UsageError, match=r"66 weights are not a multiple of 4, as 2:4 masks need"):
        pattern_diversity(NMPattern.parse("2:4"), 66)
    with pytest.raises(UsageError, match=r"60 weights are not a multiple of 16, as T2:4 masks need"):
        pattern_diversity(NMPattern.parse("T2:4"), 60)
    with pytest.raises(UsageError, match=r"go up to M = 16, .*; 16:32 has no exact count here"):
        count_transposable_tiles(16, 32)
    with pytest.raises(UsageError, match=r"5:4: N:M keeps N of M"):
        count_transposable_tiles(5, 4)
    with pytest.raises(UsageError, match=r"30 output channels are not a multiple of the block of 16"):
        block_diversity(30, 32, block=16, kept=16)
