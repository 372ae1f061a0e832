"""Whether the labels can tell anything about the engines: they fit the classes, and agreement with them is no accident."""

from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import UsageError

__all__ = ["check_above_chance", "require_classes"]

_FEWEST_CLASSES = 2


def require_classes(outputs: npt.NDArray[Any], labels: npt.NDArray[np.int64]) -> None:
    """Check that an engine's outputs are the scores of classes, and that the labels are numbers of these classes.

    Raises:
        UsageError: outputs are not (count, classes) with at least two classes, or a label is no class.
    """
    if outputs.ndim != 2 or outputs.shape[1] < _FEWEST_CLASSES:
        raise UsageError(
            f"the engine's outputs have the shape {outputs.shape}, not (count, classes) with at least two classes: there is no "
            "predicted class to compare; export a classifier that returns its logits"
        )
    classes = outputs.shape[1]
    if labels.min() < 0 or labels.max() >= classes:
        raise UsageError(
            f"the labels run from {labels.min()} to {labels.max()}, but the network's {classes} classes are numbered 0 to "
            f"{classes - 1}; number the labels of the data set as in training"
        )


def check_above_chance(classes: npt.NDArray[np.int64], labels: npt.NDArray[np.int64]) -> Check:
    """Whether the dense engine agrees with the labels more often than chance would make it.

    Chance is what Cohen's kappa (Educational and Psychological Measurement 20, 1960) subtracts: with n_c predictions and m_c
    labels of class c among N samples, sum_c n_c m_c / N agree where the two have nothing to do with each other. At or below it
    neither the accuracy drop nor the changed predictions say anything: a network that gives one class to every image
    loses nothing by masking, and right answers by other labels are none.

    Args:
        classes: integer (count,), the dense engine's top-1, of the classes 0, 1, ...
        labels: int64 (count,), of the same classes.
    """
    total, correct = len(labels), int((classes == labels).sum())
    length = int(max(classes.max(), labels.max())) + 1
    chance = int(np.bincount(classes, minlength=length) @ np.bincount(labels, minlength=length))
    above = correct * total > chance
    detail = f"the dense engine is right on {correct} of {total} samples; by chance it would be on {chance / total:.4g}"
    if not above:
        detail += (
            ": what masking does to such answers shows nothing; check that the labels belong to the images, that they are "
            "numbered as in training, and that there are images of several classes"
        )
    return Check(
        name="dense accuracy above chance",
        measured=correct / total,
        bound=None,
        tolerance=chance / total**2,
        unit="share of samples",
        verdict="pass" if above else "inconclusive",
        detail=detail,
    )
