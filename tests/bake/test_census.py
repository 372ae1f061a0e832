"""Counting in pieces gives what counting at once gives."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from masksparse_deploy.bake import census
from masksparse_deploy.bake.census import take_census
from masksparse_deploy.bake.conformity import nonzeros_per_group
from masksparse_deploy.core.patterns import NMPattern


@hypothesis.given(
    shape=st.lists(st.integers(1, 9), min_size=1, max_size=4),
    axis=st.integers(0, 3),
    pattern=st.sampled_from([(2, 4), (1, 4), (1, 2), (3, 5)]),
    chunk=st.integers(1, 200),
    seed=st.integers(0, 2**32),
)
def test_pieces_add_up(shape: list[int], axis: int, pattern: tuple[int, int], chunk: int, seed: int) -> None:
    axis = min(axis, len(shape) - 1)
    n, m = pattern
    weight = np.random.default_rng(seed).integers(0, 2, shape).astype(np.float16)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(census, "_CHUNK", chunk)
        found = take_census(weight, axes=(axis,), pattern=NMPattern(n=n, m=m))
        both = take_census(weight, axes=(axis, 0), pattern=NMPattern(n=n, m=m))
    counts = nonzeros_per_group(weight, axis=axis, size=m)
    assert found.nonzero_count == np.count_nonzero(weight)
    assert found.density == np.count_nonzero(weight) / weight.size
    assert (found.group_count, found.violation_count) == (counts.size, (counts > n).sum())
    assert found.full == (counts == n).all()
    other = nonzeros_per_group(weight, axis=0, size=m)
    assert (both.nonzero_count, both.group_count) == (found.nonzero_count, counts.size + other.size)
    assert both.violation_count == (counts > n).sum() + (other > n).sum()
    assert both.full == bool((counts == n).all() and (other == n).all())


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (4, 0), (3, 0, 2)])
def test_weights_without_elements(shape: tuple[int, ...]) -> None:
    found = take_census(np.ones(shape), axes=(0,), pattern=NMPattern(n=2, m=4))
    assert found.weight_count == found.nonzero_count == int(np.prod(shape))
    assert found.violation_count == 0
