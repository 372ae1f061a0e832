"""A 1xN weight as groups over gathered channels: exact, filled up with zeros, and N found from the zeros."""

import numpy as np
import pytest

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.rewrite.blocks.layout import GroupLayout, block_size_of, group_layout
from tests.rewrite.models import Array, blocked_weight


def dense_again(layout: GroupLayout, in_channels: int) -> Array:
    """The weight with its zeros, put together one output channel at a time."""
    weight = np.zeros((len(layout.weight), in_channels, *layout.weight.shape[2:]), layout.weight.dtype)
    size = len(weight) // layout.group_count
    for row, values in enumerate(layout.weight):
        weight[row, layout.channels[row // size]] = values
    return weight


@pytest.mark.parametrize("text", ["1x4@0.5", "1x4~0.5", "1x16@0.75", "1x8@0.5/4"])
@pytest.mark.parametrize("multiple", [1, 5, 8, 100])
def test_groups_hold_the_weight_bit_for_bit(text: str, multiple: int) -> None:
    pattern = BlockPattern.parse(text)
    weight = blocked_weight((16, 12, 3, 3), pattern)
    layout = group_layout(weight, pattern.n, multiple=multiple)
    assert layout.group_count == 16 // pattern.n
    assert (np.diff(layout.channels, axis=1) > 0).all()
    read = layout.channels.shape[1]
    assert read == 12 or read % multiple == 0
    np.testing.assert_array_equal(dense_again(layout, 12).view(np.uint32), weight.view(np.uint32))


def test_a_uniform_layer_reads_no_channel_too_many() -> None:
    pattern = BlockPattern(n=4, rate=0.75)
    assert group_layout(blocked_weight((16, 12, 1, 1), pattern), 4).channels.shape == (4, 3)


def test_a_group_without_weights_reads_one_channel() -> None:
    weight = np.zeros((4, 3, 1, 1), np.float32)
    weight[:2, 2] = 1
    layout = group_layout(weight, 2)
    assert layout.channels.tolist() == [[2], [2]]  # one that is read anyway
    assert not layout.weight[2:].any()


@pytest.mark.parametrize(("n", "expected"), [(2, 2), (4, 4), (16, 16)])
def test_the_largest_n_is_found_from_the_zeros(n: int, expected: int) -> None:
    weight = np.ones((16, 8, 1, 1), np.float32)
    weight[:n, ::2] = 0
    assert block_size_of(weight) == expected


def test_weights_without_blocks_have_no_n() -> None:
    weight = np.ones((16, 8, 1, 1), np.float32)
    assert block_size_of(weight) is None
    weight[3, 3] = 0
    assert block_size_of(weight) is None
