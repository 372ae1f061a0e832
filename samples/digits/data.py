"""The handwritten digits that ship with scikit-learn, 1,797 images of 8x8 pixels, split once and for all."""

import numpy as np
import numpy.typing as npt
from sklearn.datasets import load_digits

__all__ = ["test", "train"]

Arrays = tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]


def train() -> Arrays:
    """Two thirds of every class: images float32 (1198, 1, 8, 8), labels int64 (1198,)."""
    images, labels, is_test = _split()
    return images[~is_test], labels[~is_test]


def test() -> Arrays:
    """The other third: images float32 (599, 1, 8, 8), labels int64 (599,)."""
    images, labels, is_test = _split()
    return images[is_test], labels[is_test]


def _split() -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64], npt.NDArray[np.bool_]]:
    digits = load_digits()
    # Pixels run from 0 to 16, with a mean of 4.9 and a standard deviation of 6.0.
    images = ((digits.images - 4.9) / 6.0).astype(np.float32)[:, None]
    labels = digits.target.astype(np.int64)
    # Sorted by class, every third image is a test image: stratified, and the same with every version of NumPy.
    is_test = np.zeros(len(labels), dtype=np.bool_)
    is_test[np.argsort(labels, kind="stable")[2::3]] = True
    return images, labels, is_test
