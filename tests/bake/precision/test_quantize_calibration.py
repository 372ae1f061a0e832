"""Limits of activations: what each method promises, and images that come in batches."""

from collections.abc import Sequence

import numpy as np
import pytest

from masksparse_deploy.bake.precision.calibration import CalibrationMethod, activation_limits, image_batches
from masksparse_deploy.core.errors import UsageError
from tests.bake.precision.quantized_models import images, network

METHODS: Sequence[CalibrationMethod] = ("minmax", "entropy", "percentile")


def test_minmax_is_the_largest_magnitude() -> None:
    model = network("y = Neg (x)", {})
    batch = images(70, (4, 6, 6))
    batch[69, 3, 5, 5] = -50  # in the last, smaller batch
    assert activation_limits(model, {"x", "y"}, batch, method="minmax") == {"x": 50, "y": 50}


def test_the_others_clip_outliers() -> None:
    model = network("y = Neg (x)", {})
    batch = images(100, (4, 6, 6))
    batch[0, 0, 0, 0] = 50  # one of 14,400 values
    limits = {method: activation_limits(model, {"y"}, batch, method=method)["y"] for method in METHODS}
    assert limits["minmax"] == 50
    # 99.99 % of normal magnitudes are below 3.9; the histogram begins with bins of 50 / 2048
    assert 3 < limits["percentile"] < 6
    assert 1 < limits["entropy"] < 50


def test_an_activation_of_zeros_has_no_limit() -> None:
    model = network("y = Neg (x)", {})
    for method in METHODS:
        limit = activation_limits(model, {"y"}, np.zeros((8, 4, 6, 6), np.float32), method=method)["y"]
        assert 0 <= limit < 1, method


@pytest.mark.parametrize(("count", "starts"), [(3, [0]), (6, [0, 3]), (7, [0, 3, 4])])
def test_a_fixed_batch_size(count: int, starts: list[int]) -> None:
    model = network("y = Neg (x)", {}, shape="3,4,6,6")
    batch = images(count, (4, 6, 6))
    name, batches = image_batches(model, batch)
    assert name == "x"
    for found, start in zip(batches, starts, strict=True):
        np.testing.assert_array_equal(found, batch[start : start + 3])
    assert activation_limits(model, {"y"}, batch, method="minmax")["y"] == np.abs(batch).max()


def test_fewer_images_than_a_batch() -> None:
    model = network("y = Neg (x)", {}, shape="3,4,6,6")
    with pytest.raises(UsageError, match=r"images are float32 \(2, 4, 6, 6\).*takes float32 \(3, 4, 6, 6\); give at least one"):
        image_batches(model, images(2, (4, 6, 6)))
