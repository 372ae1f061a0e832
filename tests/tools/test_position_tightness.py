import numpy as np
import pytest

from masksparse_deploy.core.samples import Samples
from tests.models.make_onnx import residual_pair
from tools import position_tightness


@pytest.mark.parametrize(("last", "with_weights"), [(True, False), (False, True)])
def test_masks_are_drawn_and_bounds_compared_with_what_is_measured(last: bool, with_weights: bool) -> None:
    images = np.random.default_rng(0).standard_normal((4, 3, 8, 8), dtype=np.float32)
    samples = Samples(images, np.zeros(4, dtype=np.int64))
    found = position_tightness.row(residual_pair()[0], samples, 0.25, last=last, with_weights=with_weights)
    rate, where, layerwise, _, *claims, certified = found.strip("| ").split(" | ")
    assert (rate, where) == ("25%", "last layer" if last else "4 layers, and 2:4")
    assert float(layerwise) > 1
    data_free, *_, hybrid = (float(claim) for claim in claims)
    assert 1 <= hybrid < data_free
    assert certified.endswith(" of 4")
