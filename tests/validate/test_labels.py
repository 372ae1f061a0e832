import numpy as np
import pytest

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.validate.labels import check_above_chance, require_classes


@pytest.mark.parametrize("shape", [(3,), (3, 1), (3, 4, 4), (3, 2, 5, 5)])
def test_outputs_that_are_no_scores_of_classes(shape):
    with pytest.raises(UsageError, match=r"not \(count, classes\) with at least two classes"):
        require_classes(np.zeros(shape), np.zeros(3, np.int64))


def test_labels_of_all_classes_are_accepted():
    require_classes(np.zeros((3, 3)), np.array([0, 1, 2]))


@pytest.mark.parametrize(
    ("classes", "labels", "verdict"),
    [
        ([0, 1, 2, 0], [0, 1, 2, 1], "pass"),
        ([0, 0, 0, 0], [0, 0, 0, 1], "inconclusive"),  # one answer for everything, right on most
        ([0, 0], [0, 0], "inconclusive"),  # one class only
        ([1, 2, 0, 0], [0, 1, 2, 2], "inconclusive"),  # numbered otherwise
        ([0, 0, 1, 1], [0, 1, 0, 1], "inconclusive"),  # as chance has it: 2 of 4
        ([0] * 90 + [1] * 10, [0] * 85 + [1] * 15, "pass"),  # less right than "always 0" may be, but no accident
    ],
)
def test_agreement_above_chance(classes, labels, verdict):
    assert check_above_chance(np.array(classes), np.array(labels)).verdict == verdict


def test_the_figures_are_shown():
    check = check_above_chance(np.array([0, 0, 1, 1]), np.array([0, 0, 0, 1]))
    # 2 * 3 + 2 * 1 = 8 of 16 pairs agree
    assert (check.measured, check.tolerance) == (0.75, 0.5)
    assert "right on 3 of 4 samples; by chance it would be on 2" in check.detail
