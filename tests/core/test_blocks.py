import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern

RATES = st.floats(1e-6, 1 - 1e-6)


@st.composite
def patterns(draw: st.DrawFn) -> BlockPattern:
    uniform = draw(st.booleans())
    multiple = draw(st.sampled_from((1, 4, 8, 16))) if uniform else 1
    return BlockPattern(n=draw(st.integers(2, 8)), rate=draw(RATES), multiple=multiple, uniform=uniform)


@given(patterns())
def test_its_text_says_all_of_it(pattern: BlockPattern) -> None:
    assert BlockPattern.parse(str(pattern)) == pattern
    assert parse_pattern(f" {pattern} ") == pattern


def test_texts() -> None:
    assert BlockPattern.parse("1x32@0.5") == BlockPattern(n=32, rate=0.5)
    assert BlockPattern.parse("1x32@.5/16") == BlockPattern(n=32, rate=0.5, multiple=16)
    assert str(BlockPattern.parse("1x8~0.4609375")) == "1x8~0.4609375"
    assert parse_pattern("T2:4") == NMPattern(n=2, m=4, transposable=True)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "1x32",
            "pattern '1x32' is not of the form 1xN@P, blocks of N output channels of which a share P is pruned, as 1x32@0.5",
        ),
        ("1x32@half", "pattern '1x32@half' is not of the form 1xN@P"),
        ("1x32@1", "pattern 1x32@1: pruning a share of 1 leaves no channel; it has the form 1xN@P"),
        ("1x32@1.5", "pattern 1x32@1.5: pruning a share of 1.5 leaves no channel"),
        ("1x32@0.0", "pattern 1x32@0: pruning a share of 0 leaves nothing pruned"),
        ("1x1@0.5", "pattern 1x1@0.5: blocks of fewer than 2 output channels are single kernels"),
        ("1x32@0.5/0", "pattern 1x32@0.5: channels are brought to multiples of 1 or more, and of uniform layers only"),
        ("1x32~0.5/16", "pattern 1x32~0.5/16: channels are brought to multiples of 1 or more, and of uniform layers only"),
    ],
)
def test_what_is_no_pattern(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        parse_pattern(text)


@pytest.mark.parametrize(
    ("text", "channels", "kept"),
    [
        ("1x8@0.5", 64, 32),
        ("1x8@0.5", 7, 4),  # int(0.5 * 7) = 3 are pruned
        ("1x8@0.99", 3, 1),
        ("1x8@0.46875/16", 64, 32),  # 34, near 32
        ("1x8@0.625/16", 64, 32),  # 24, in the middle
        ("1x8@0.95/16", 64, 16),  # 4: never none
        ("1x8@0.1/16", 40, 32),  # 36, near 32, which is also the largest that the layer has
        ("1x8@0.01/16", 40, 32),
        ("1x8@0.5/16", 16, 16),
        ("1x8@0.5/16", 12, 6),  # narrower than a multiple
    ],
)
def test_kept_channels(text: str, channels: int, kept: int) -> None:
    assert BlockPattern.parse(text).kept_channels(channels) == kept


@given(patterns(), st.integers(1, 4), st.integers(1, 40), st.integers(0, 9))
def test_the_largest_blocks_are_kept_whole(pattern: BlockPattern, groups: int, channels: int, seed: int) -> None:
    # Few values, so that many are equal.
    scores = np.random.default_rng(seed).integers(0, 5, (groups, channels)).astype(np.float64)
    kept = pattern.keep_largest(scores)
    rows = zip(scores, kept, strict=True) if pattern.uniform else [(scores.ravel(), kept.ravel())]
    for row, chosen in rows:
        count = pattern.kept_channels(channels) if pattern.uniform else pattern.kept_blocks(groups * pattern.n, channels)
        # Largest first, and of equal ones that with the smaller index.
        expected = sorted(range(len(row)), key=lambda index: (-row[index], index))[:count]
        assert set(np.flatnonzero(chosen)) == set(expected)
    keep = pattern.expand(kept, (groups * pattern.n, channels, 3, 1))
    assert np.array_equal(pattern.blocks(keep), kept)
    assert pattern.count_violations(keep) == 0
    assert np.array_equal(keep[:: pattern.n, :, 0, 0], keep[pattern.n - 1 :: pattern.n, :, 2, 0])


def test_what_is_expanded_can_be_written_to() -> None:
    for shape in ((4, 3), (4, 3, 1, 1), (4, 3, 3, 3)):
        keep = BlockPattern(n=2, rate=0.5).expand(np.ones((2, 3), np.bool_), shape)
        assert keep.shape == shape and keep.flags.writeable and keep.flags.c_contiguous


def test_one_weight_too_many_is_a_violation() -> None:
    for text in ("1x4@0.5", "1x4~0.5"):
        pattern = BlockPattern.parse(text)
        keep = pattern.expand(pattern.keep_largest(np.random.default_rng(0).random((2, 8))), (8, 8, 3, 3))
        assert pattern.count_violations(keep) == 0
        row, column = np.argwhere(~keep[:, :, 0, 0])[0]
        keep[row, column, 1, 2] = True
        assert pattern.count_violations(keep) == 1
