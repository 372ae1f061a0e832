from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.engine.batches import run_in_batches


@given(count=st.integers(1, 20), batch=st.integers(1, 8), pad=st.booleans())
def test_every_image_is_run_once_and_in_order(count: int, batch: int, pad: bool) -> None:
    images = np.arange(count * 3, dtype=np.float32).reshape(count, 3, 1, 1)
    sizes = []

    def run_one(piece: npt.NDArray[np.float32]) -> Mapping[str, npt.NDArray[Any]]:
        sizes.append(len(piece))
        return {"double": 2 * piece, "sum": piece.sum(axis=(1, 2, 3))}

    outputs = run_in_batches(run_one, images, batch=batch, pad=pad)
    np.testing.assert_array_equal(outputs["double"], 2 * images)
    np.testing.assert_array_equal(outputs["sum"], images.sum(axis=(1, 2, 3)))
    assert len(sizes) == -(-count // batch)
    assert max(sizes) <= batch
    assert not pad or set(sizes) == {batch}


@pytest.mark.parametrize("output", [np.float32(1), np.zeros((3, 2), np.float32)], ids=["scalar", "other length"])
def test_outputs_without_the_batch_in_front_are_refused(output: npt.NDArray[np.float32]) -> None:
    with pytest.raises(UsageError, match="first axis is not the batch of 2"):
        run_in_batches(lambda piece: {"y": np.asarray(output)}, np.zeros((2, 3, 1, 1), np.float32), batch=4, pad=False)
