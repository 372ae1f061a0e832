"""Masks of tiles and of weights: feasible along both axes, and refused by name where there can be none."""

import numpy as np
import pytest

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.transposable.solve import solve_tiles, transposable_mask


@pytest.mark.parametrize("shape", [(8, 16), (16, 8, 3, 3), (8, 8, 1)])
@pytest.mark.parametrize("pattern", ["T2:4", "T4:8", "T1:8"])
def test_a_mask_is_n_to_m_along_both_axes(shape: tuple[int, ...], pattern: str) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    parsed = NMPattern.parse(pattern)
    keep = transposable_mask(weight, parsed)
    assert keep.shape == shape
    assert parsed.count_violations(keep, group_axis=1) == 0
    assert keep.mean() == parsed.density  # at most N everywhere and N on average: exactly N everywhere


def test_channels_must_be_multiples_of_m() -> None:
    with pytest.raises(UsageError, match=r"\(8, 6, 3, 3\) has 6 input channels, not a multiple of 4: .* leave the layer dense"):
        transposable_mask(np.ones((8, 6, 3, 3), dtype=np.float32), NMPattern.parse("T2:4"))


def test_nan_is_refused() -> None:
    with pytest.raises(UsageError, match="NaN or infinite; repair the checkpoint"):
        solve_tiles(np.full((1, 4, 4), np.nan), 2)
