from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from masksparse_deploy.core.artifacts.foreign import Convention
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.groupings import ZeroGroups, find_groups

Kept = npt.NDArray[np.bool_]
CONVENTIONS: tuple[Convention, ...] = ("input channels", "output channels", "kernel taps", "channels last")


def plant(pattern: str, convention: Convention, shape: tuple[int, ...] = (32, 16, 3, 3), seed: int = 0) -> Kept:
    """Random zeros of which every group cut by `convention` has exactly N:M."""
    nm = NMPattern.parse(pattern)
    scores = np.random.default_rng(seed).random(shape)
    if convention in ("input channels", "output channels"):
        return nm.keep_largest(scores, group_axis=1 if convention == "input channels" else 0)
    ordered = np.moveaxis(scores, 1, -1) if convention == "channels last" else scores
    keep = nm.keep_largest(ordered.reshape(-1), group_axis=0).reshape(ordered.shape)
    return np.moveaxis(keep, -1, 1) if convention == "channels last" else keep


def share(groups: ZeroGroups, convention: Convention) -> float:
    entry = next(entry for entry in groups.groupings if entry.convention == convention)
    return entry.conforming_count / entry.group_count


@pytest.mark.parametrize(
    ("planted", "named"),
    [
        *((same, same) for same in ("1:4", "2:4", "3:4", "4:8", "8:16", "2:3", "5:7", "15:16")),
        # What suits groups of four as well is named so: that is what sparse kernels ask for.
        ("1:2", "2:4"),
        ("2:8", "2:4"),
        ("1:16", "1:4"),
    ],
)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_planted_pattern_is_found(planted: str, named: str, convention: Convention) -> None:
    m = 4 if planted == "1:2" else NMPattern.parse(planted).m
    # In channels-last order, groups that straddle no row are groups along the input channels.
    channels = 2 * m + 1 if convention == "channels last" else 2 * m
    groups = find_groups(plant(planted, convention, (8 * m, channels, 3, 3)), input_axis=1)
    assert (groups.zeros, str(groups.pattern)) == (convention, named)
    assert share(groups, convention) == 1.0
    assert groups.suits_hardware == (convention == "input channels" and named in ("1:4", "2:4"))


def test_masks_over_kernel_taps_break_a_third_of_the_groups_that_matter() -> None:
    groups = find_groups(plant("2:4", "kernel taps", (64, 64, 3, 3)), input_axis=1)
    assert groups.zeros == "kernel taps"
    # The four weights of a group along the input channels lie 9 apart, so in four groups of the other kind: each is kept with
    # probability 1/2, and at most two with (1 + 4 + 6) / 16. Of 9216 groups, five standard deviations are 0.024.
    assert share(groups, "input channels") == pytest.approx(11 / 16, abs=0.024)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_one_weight_too_many_is_seen(convention: Convention) -> None:
    shape = (32, 17 if convention == "channels last" else 16, 3, 3)
    kept = plant("2:4", convention, shape)
    position = tuple(np.argwhere(~kept)[100])
    kept[position] = True
    groups = find_groups(kept, input_axis=1)
    assert groups.zeros == "unstructured"
    assert groups.pattern is None
    entry = next(entry for entry in groups.groupings if entry.convention == convention)
    assert entry.group_count - entry.conforming_count == 1


@pytest.mark.parametrize("density", [0.3, 0.5, 0.9])
@pytest.mark.parametrize("shape", [(64, 64, 3, 3), (16, 16, 1, 1), (128, 64)])
def test_random_zeros_have_no_pattern(density: float, shape: tuple[int, ...]) -> None:
    kept = np.random.default_rng(0).random(shape) < density
    groups = find_groups(kept, input_axis=1)
    assert (groups.zeros, groups.pattern, groups.suits_hardware) == ("unstructured", None, False)


def test_more_zeros_than_the_pattern_still_conform() -> None:
    kept = plant("2:4", "input channels")
    kept[:4] = False
    assert find_groups(kept, input_axis=1).zeros == "input channels"
    nothing = find_groups(np.zeros_like(kept), input_axis=1)
    assert (nothing.zeros, str(nothing.pattern)) == ("input channels", "1:4")


def test_nothing_dropped_is_dense() -> None:
    groups = find_groups(np.ones((8, 8, 3, 3), np.bool_), input_axis=1)
    assert (groups.zeros, groups.pattern, groups.suits_hardware) == ("dense", None, False)


def test_only_the_pattern_asked_for_is_tried() -> None:
    kept = plant("4:8", "input channels")
    assert str(find_groups(kept, input_axis=1).pattern) == "4:8"
    assert find_groups(kept, input_axis=1, asked=NMPattern.parse("4:8")).zeros == "input channels"
    assert find_groups(kept, input_axis=1, asked=NMPattern.parse("2:4")).zeros == "unstructured"
    assert str(find_groups(plant("1:4", "input channels"), input_axis=1, asked=NMPattern.parse("2:4")).pattern) == "2:4"


def test_a_transposed_convolution_has_its_input_channels_first() -> None:
    kept = plant("2:4", "input channels")
    assert find_groups(kept.swapaxes(0, 1).copy(), input_axis=0).zeros == "input channels"
    assert find_groups(kept, input_axis=0).zeros == "output channels"


@pytest.mark.parametrize("shape", [(3, 3, 1, 1), (5, 7), (1, 1)])
def test_shapes_that_allow_no_groups_of_four(shape: tuple[int, ...]) -> None:
    kept = np.zeros(shape, np.bool_)
    kept[0, 0] = True
    groups = find_groups(kept, input_axis=1)
    assert not groups.suits_hardware
    assert groups.groupings == ()


def conforming_one_by_one(kept: Kept, convention: str, pattern: NMPattern) -> tuple[int, int]:
    """Groups and conforming groups, counted weight by weight."""
    outputs, inputs, height, width = kept.shape
    taps = [(y, x) for y in range(height) for x in range(width)]
    order = {
        "input channels": [(o, i, y, x) for o in range(outputs) for y, x in taps for i in range(inputs)],
        "output channels": [(o, i, y, x) for i in range(inputs) for y, x in taps for o in range(outputs)],
        "kernel taps": [(o, i, y, x) for o in range(outputs) for i in range(inputs) for y, x in taps],
        "channels last": [(o, i, y, x) for o in range(outputs) for y, x in taps for i in range(inputs)],
    }[convention]
    groups = [order[start : start + pattern.m] for start in range(0, len(order), pattern.m)]
    return len(groups), sum(sum(bool(kept[place]) for place in group) <= pattern.n for group in groups)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_shares_are_those_of_counting_one_by_one(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.sampled_from(sizes)) for sizes in ((2, 3, 4, 8), (1, 3, 4, 8), (1, 2, 3), (1, 2)))
    kept: Any = data.draw(npst.arrays(np.bool_, shape))
    m = data.draw(st.integers(2, 4))
    pattern = NMPattern(n=data.draw(st.integers(1, m)), m=m)
    for entry in find_groups(kept, input_axis=1, asked=pattern).groupings:
        assert (entry.group_count, entry.conforming_count) == conforming_one_by_one(kept, entry.convention, pattern)
