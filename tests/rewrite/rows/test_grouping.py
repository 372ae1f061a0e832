"""Groups hold every position once, multiply what must be multiplied, and leave out nearly all that is constant."""

import numpy as np
import numpy.typing as npt
import pytest

from masksparse_deploy.rewrite.rows.grouping import GroupCosts, plan_groups
from masksparse_deploy.rewrite.rows.layout import CONSTANT, PADDING, RowLayout, dense_layout, window_rows
from tests.rewrite.rows.models import ONLY_PRODUCTS

Indices = npt.NDArray[np.int64]


def windows_of(size: int, density: float, seed: int = 0) -> Indices:
    """3x3 windows of kept positions behind a layer with the same mask."""
    keep = np.random.default_rng(seed).random((size, size)) < density
    rows = np.full((size, size), CONSTANT)
    rows[keep] = np.arange(keep.sum())
    layout = RowLayout(rows=rows, row_count=int(keep.sum()) + 2, constant_row=int(keep.sum()), zero_row=int(keep.sum()) + 1)
    return window_rows(layout, np.argwhere(keep), kernel=(3, 3), strides=(1, 1), pads=(1, 1, 1, 1), dilations=(1, 1))


@pytest.mark.parametrize("size", [7, 14, 28])
@pytest.mark.parametrize("density", [0.3, 0.5, 0.8])
@pytest.mark.parametrize("costs", [GroupCosts(), ONLY_PRODUCTS], ids=["measured", "products"])
def test_every_live_tap_is_multiplied_once_and_the_others_are_the_same_in_a_group(
    size: int, density: float, costs: GroupCosts
) -> None:
    windows = windows_of(size, density)
    multiplied = np.zeros(windows.shape, dtype=np.int64)
    segments = plan_groups(windows, kernel_width=3, in_channels=64, out_channels=64, costs=costs)
    assert sorted(tap for segment in segments for tap in segment.taps) == list(range(9))
    for segment in segments:
        assert sorted(np.concatenate([group.members for group in segment.groups])) == list(range(len(windows)))
        for group in segment.groups:
            assert set(group.taps) <= set(segment.taps)
            multiplied[np.ix_(group.members, np.array(group.taps, dtype=np.int64))] += 1
            for tap in set(segment.taps) - set(group.taps):
                assert len(np.unique(windows[group.members, tap])) == 1
    assert (multiplied[windows >= 0] == 1).all()
    assert multiplied.max() == 1


def test_nothing_constant_is_multiplied_where_operators_cost_nothing() -> None:
    windows = windows_of(28, 0.5)
    segments = plan_groups(windows, kernel_width=3, in_channels=64, out_channels=64, costs=ONLY_PRODUCTS)
    computed = sum(len(group.members) * len(group.taps) for segment in segments for group in segment.groups)
    assert computed == np.count_nonzero(windows >= 0)


def test_few_positions_of_many_channels_share_their_weights() -> None:
    """Where reading weights costs more than products do, a group is not worth weights of its own."""
    costs = GroupCosts(rows_of_weights=1e6)
    segments = plan_groups(windows_of(7, 0.5), kernel_width=3, in_channels=512, out_channels=512, costs=costs)
    assert max(sum(tap in group.taps for segment in segments for group in segment.groups) for tap in range(9)) == 1


def test_a_large_gathered_matrix_is_split() -> None:
    windows = window_rows(
        dense_layout(32, 32, with_zero=True),
        np.argwhere(np.ones((32, 32))),
        kernel=(3, 3),
        strides=(1, 1),
        pads=(1, 1, 1, 1),
        dilations=(1, 1),
    )
    (segment,) = plan_groups(windows, kernel_width=3, in_channels=64, out_channels=64, costs=GroupCosts(operators=1e12))
    largest = max(len(group.members) * 9 * 64 * 4 for group in segment.groups)
    assert len(segment.groups) > 1
    assert largest <= GroupCosts().cached_bytes


def test_windows_beyond_the_image_and_of_masked_positions() -> None:
    layout = RowLayout(rows=np.array([[0, CONSTANT], [1, 2]]), row_count=5, constant_row=3, zero_row=4)
    windows = window_rows(layout, np.array([[0, 0]]), kernel=(2, 2), strides=(1, 1), pads=(1, 0, 0, 0), dilations=(1, 1))
    np.testing.assert_array_equal(windows, [[PADDING, PADDING, 0, CONSTANT]])
    np.testing.assert_array_equal(layout.filled(windows), [[4, 4, 0, 3]])


def test_more_kinds_of_windows_than_are_compared_are_still_covered() -> None:
    windows = windows_of(48, 0.5)
    assert len(np.unique(np.minimum(windows, 0), axis=0)) > 300
    wide = np.concatenate([windows, windows[::-1]], axis=1)  # 18 taps: nearly every window is one of its own
    (segment, *_) = plan_groups(wide, kernel_width=18, in_channels=8, out_channels=8, costs=ONLY_PRODUCTS)
    assert sorted(np.concatenate([group.members for group in segment.groups])) == list(range(len(wide)))
