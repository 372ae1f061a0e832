from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.groups import count_kept, filled, members_of
from masksparse_deploy.core.patterns import NMPattern

TWO_FOUR = NMPattern(n=2, m=4)


def groups_of(array: npt.NDArray[Any], *, axis: int, size: int) -> npt.NDArray[Any]:
    """What a group is: the axis goes last and is split into (shape[axis] // size, size)."""
    moved = np.moveaxis(array, axis, -1)
    return moved.reshape(*moved.shape[:-1], -1, size)


def ungroup(groups: npt.NDArray[Any], *, axis: int) -> npt.NDArray[Any]:
    return np.moveaxis(groups.reshape(*groups.shape[:-2], -1), -1, axis)


@st.composite
def patterns(draw: st.DrawFn) -> NMPattern:
    m = draw(st.integers(1, 16))
    return NMPattern(n=draw(st.integers(1, m)), m=m)


def sorted_keep(pattern: NMPattern, scores: npt.NDArray[np.floating], axis: int) -> npt.NDArray[np.bool_]:
    """What keeping the N largest means: the first N of every group after a stable sort, largest first."""
    order = np.argsort(-groups_of(scores, axis=axis, size=pattern.m), axis=-1, kind="stable")
    keep = np.zeros(order.shape, dtype=np.bool_)
    np.put_along_axis(keep, order[..., : pattern.n], True, axis=-1)
    return ungroup(keep, axis=axis)


# Few values, so that ties, signed zeros, infinities and NaN meet in one group.
AWKWARD = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, 5e-324, np.inf, -np.inf, np.nan])


@settings(deadline=None, max_examples=200)
@given(patterns(), st.data())
def test_keep_largest_is_a_stable_sort(pattern: NMPattern, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 3))
    shape = [2, 1, 3, 2]
    shape[axis] = pattern.m * data.draw(st.integers(1, 3))
    dtype = data.draw(st.sampled_from([np.float32, np.float64]))
    scores = data.draw(npst.arrays(dtype, shape, elements=AWKWARD.map(dtype), fill=st.nothing()))
    for given_scores in (scores, np.asfortranarray(scores), scores[:, ::-1]):
        keep = pattern.keep_largest(given_scores, group_axis=axis)
        assert keep.flags.c_contiguous
        np.testing.assert_array_equal(keep, sorted_keep(pattern, given_scores, axis))


@given(patterns(), st.data())
def test_counts_and_members_are_those_of_the_groups(pattern: NMPattern, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 2))
    shape = [2, 3, 2]
    shape[axis] = pattern.m * data.draw(st.integers(1, 3))
    keep = data.draw(npst.arrays(np.bool_, shape))
    grouped = groups_of(keep, axis=axis, size=pattern.m)
    counts = count_kept(keep, axis=axis, size=pattern.m)
    np.testing.assert_array_equal(np.moveaxis(counts, axis, -1), grouped.sum(-1))
    assert pattern.count_violations(keep, group_axis=axis) == (grouped.sum(-1) > pattern.n).sum()
    members = members_of(keep, axis=axis, size=pattern.m)
    np.testing.assert_array_equal(np.moveaxis(members, (0, axis + 1), (-1, -2)), grouped)
    assert np.shares_memory(members, keep)


@settings(deadline=None)
@given(patterns(), st.data())
def test_keep_largest_keeps_exactly_n_and_the_most_magnitude(pattern: NMPattern, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 2))
    shape = [2, 3, 2]
    shape[axis] = pattern.m * data.draw(st.integers(1, 3))
    scores = data.draw(npst.arrays(np.float64, shape, elements=st.floats(0, 10)))
    keep = pattern.keep_largest(scores, group_axis=axis)
    grouped = groups_of(keep, axis=axis, size=pattern.m)
    assert (grouped.sum(-1) == pattern.n).all()
    assert pattern.count_violations(keep, group_axis=axis) == 0
    # Best of all admissible rows, by enumeration; sums of the same terms in another order differ by rounding only.
    book = pattern.codebook().astype(np.float64)
    best = (groups_of(scores, axis=axis, size=pattern.m) @ book.T).max(-1)
    kept = (groups_of(scores, axis=axis, size=pattern.m) * grouped).sum(-1)
    np.testing.assert_allclose(kept, best, rtol=1e-12)


def test_ties_go_to_the_smaller_index() -> None:
    keep = TWO_FOUR.keep_largest(np.ones((1, 4)), group_axis=1)
    assert keep.tolist() == [[True, True, False, False]]


def test_groups_of_a_kernel_run_along_input_channels() -> None:
    kernel = np.arange(2 * 8 * 3 * 3).reshape(2, 8, 3, 3)
    members = members_of(kernel, axis=1, size=4)
    assert members.shape == (4, 2, 2, 3, 3)
    assert members[:, 1, 1, 2, 0].tolist() == kernel[1, 4:8, 2, 0].tolist()


def test_a_fifth_kept_weight_is_counted() -> None:
    keep = TWO_FOUR.keep_largest(np.random.default_rng(0).random((4, 8, 3, 3)), group_axis=1)
    row = np.argmin(keep[0, :4, 0, 0])
    broken = keep.copy()
    broken[0, row, 0, 0] = True
    assert TWO_FOUR.count_violations(broken, group_axis=1) == 1


def test_codebook_of_two_four_has_six_rows() -> None:
    book = TWO_FOUR.codebook()
    assert book.shape == (6, 4)
    assert len({tuple(row) for row in book.tolist()}) == 6
    assert (book.sum(1) == 2).all()


@pytest.mark.parametrize("text", ["2:4", " 1:16 ", "4:8", " T2:4", "T16:32"])
def test_parse_and_text_agree(text: str) -> None:
    assert str(NMPattern.parse(text)) == text.strip()


@pytest.mark.parametrize(("text", "word"), [("24", "N:M"), ("5:4", "1 <= N <= M"), ("0:4", "1 <= N"), ("2:64", "<= 32")])
def test_bad_patterns_say_what_is_right(text: str, word: str) -> None:
    with pytest.raises(UsageError, match=word):
        NMPattern.parse(text)


def test_a_view_of_groups_that_are_not_full_is_refused() -> None:
    with pytest.raises(UsageError, match="6 elements: not a multiple of 4"):
        members_of(np.ones((2, 6, 3, 3)), axis=1, size=4)


@pytest.mark.parametrize(("shape", "axis"), [((2, 0, 3), 1), ((2, 6), 2), ((2, 6), -1)])
def test_an_axis_without_groups_is_refused(shape: tuple[int, ...], axis: int) -> None:
    with pytest.raises(UsageError, match=f"axis {axis}"):
        TWO_FOUR.keep_largest(np.ones(shape), group_axis=axis)


@settings(deadline=None, max_examples=200)
@given(patterns(), st.data())
def test_a_last_group_that_is_not_full_is_a_group_of_its_own_size(pattern: NMPattern, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, 3))
    shape = [2, 1, 3, 2]
    shape[axis] = data.draw(st.integers(1, 3 * pattern.m))
    scores = data.draw(npst.arrays(np.float32, shape, elements=AWKWARD.map(np.float32), fill=st.nothing()))
    keep = pattern.keep_largest(scores, group_axis=axis)
    assert keep.shape == scores.shape
    assert keep.flags.c_contiguous
    rest = shape[axis] % pattern.m
    full, last = np.split(scores, [shape[axis] - rest], axis)
    expected = [sorted_keep(pattern, full, axis)] if full.size else []
    if rest:
        expected.append(sorted_keep(NMPattern(n=min(pattern.n, rest), m=rest), last, axis))
    np.testing.assert_array_equal(keep, np.concatenate(expected, axis))
    counts = np.moveaxis(count_kept(keep, axis=axis, size=pattern.m), axis, -1)
    assert (counts == pattern.kept_per_group(shape[axis])).all()
    # With zeros in what is missing, which nothing keeps, hardware sees at most N of M.
    padded = filled(keep, axis=axis, size=pattern.m, fill=False)
    assert padded.shape[axis] == pattern.padded_length(shape[axis])
    assert pattern.count_violations(padded, group_axis=axis) == 0


@pytest.mark.parametrize(("channels", "kept"), [(1, [1]), (3, [2]), (4, [2]), (5, [2, 1]), (6, [2, 2]), (11, [2, 2, 2])])
def test_a_last_group_keeps_what_the_hardware_multiplies_by(channels: int, kept: list[int]) -> None:
    assert TWO_FOUR.kept_per_group(channels).tolist() == kept


def test_a_transposable_pattern_holds_along_the_output_channels_too() -> None:
    pattern = NMPattern.parse("T2:4")
    assert pattern.group_axes(1, 4) == (1, 0)
    assert pattern.group_axes(0, 2) == (0, 1)
    assert TWO_FOUR.group_axes(1, 4) == (1,)
    # The same two columns in every row: 2:4 along the rows, while these columns keep four.
    keep = np.zeros((4, 4), dtype=np.bool_)
    keep[:, :2] = True
    assert TWO_FOUR.count_violations(keep, group_axis=1) == 0
    assert pattern.count_violations(keep, group_axis=1) == 2
