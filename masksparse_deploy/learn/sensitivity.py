"""What masks on some of the layers do to a network: accuracy and divergence on the images that decide."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from scipy.special import log_softmax
from torch import nn

from masksparse_deploy.core.artifacts.document import Document
from masksparse_deploy.core.artifacts.selection import Measured
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, sha256_bytes
from masksparse_deploy.core.masks import fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.evaluation import compute_logits, substitutes
from masksparse_deploy.learn.magnitude import Magnitude
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.reestimated import Reestimated
from masksparse_deploy.learn.sparsifier import Given, Outcome

__all__ = ["Meter", "mean_divergence"]


def mean_divergence(dense: npt.NDArray[np.floating], masked: npt.NDArray[np.floating]) -> float:
    """The mean over images of KL(dense || masked) of the softmax of the logits, in nats; never below zero.

    Args:
        dense: logits (count, classes).
        masked: logits of the same images.
    """
    log_p, log_q = log_softmax(dense.astype(np.float64), axis=1), log_softmax(masked.astype(np.float64), axis=1)
    # Rounding can take the divergence of nearly equal distributions below zero.
    return max(0.0, float((np.exp(log_p) * (log_p - log_q)).sum(1).mean()))


class _Measurements(Document):
    """What an interrupted selection has measured: names of the masked layers, in one text -> result."""

    kind: ClassVar[str] = "measurements of a layer selection"

    inputs_sha256: str
    found: dict[str, Measured]


class Meter:
    """Measures a network with magnitude masks on some of its layers.

    Estimating batch-norm statistics again helps where masks move them far, and hurts where they hardly do: images augmented
    otherwise than in training have other statistics. So both are measured, and what comes closer to the dense network
    counts. Results are kept in a file: an interrupted selection goes on where it was.

    Attributes:
        dense_correct: how many of the images the dense network classifies correctly.
        total: how many images decide.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[EligibleLayer],
        train: Samples,
        judge: Samples,
        options: MaskOptions,
        *,
        checkpoint: Path,
    ) -> None:
        """Choose the masks of all layers and measure the dense network.

        Args:
            model: the trained network in evaluation mode; not changed.
            layers: the layers that may be masked.
            train: images for batch-norm statistics.
            judge: the images that decide, with labels.
            options: pattern, batch_norm, batch_size, calibration_count, augment and seed.
            checkpoint: the file that results are kept in.

        Raises:
            ArtifactError: the network returns NaN or infinite values.
        """
        self._model, self._train, self._judge, self._options, self._checkpoint = model, train, judge, options, checkpoint
        self._layers = {layer.name: layer for layer in layers}
        self._masks = Magnitude(pattern=NMPattern.parse(options.pattern)).sparsify(model, layers, train).masks
        self._reestimates = options.batch_norm and bool(batch_norms(model))
        self._dense = compute_logits(model, judge, batch_size=options.batch_size, what="dense")
        self.dense_correct = self._count_correct(self._dense)
        self.total = len(judge)
        self._inputs_sha256 = self._key()
        self._found = self._read()

    def measure(self, names: Collection[str]) -> Measured:
        """The network with masks on the named layers.

        Raises:
            ArtifactError: the masked network returns NaN or infinite values.
            OutputError: the results cannot be kept.
        """
        key = " ".join(sorted(names))
        if key not in self._found:
            self._found[key] = self._measure(names)
            _Measurements(inputs_sha256=self._inputs_sha256, found=self._found).write(self._checkpoint)
        return self._found[key]

    def _measure(self, names: Collection[str]) -> Measured:
        layers = [self._layers[name] for name in names]
        outcome = Outcome(masks={layer.weight_name: self._masks[layer.weight_name] for layer in layers})
        found = [self._evaluate(outcome)]
        if self._reestimates:
            follower = Reestimated(
                inner=Given(outcome=outcome),
                calibration_count=self._options.calibration_count,
                batch_size=self._options.batch_size,
                augment=self._options.augment,
                seed=self._options.seed,
            )
            found.append(self._evaluate(follower.sparsify(self._model, layers, self._train)))
        return min(found, key=lambda measured: measured.divergence)

    def _evaluate(self, outcome: Outcome) -> Measured:
        replaced = substitutes(self._model, outcome.masks, outcome.statistics)
        logits = compute_logits(self._model, self._judge, replaced, batch_size=self._options.batch_size, what="masked")
        correct = self._count_correct(logits)
        return Measured(
            correct=correct,
            drop_points=100 * (self.dense_correct - correct) / self.total,
            divergence=mean_divergence(self._dense, logits),
            statistics_updated=bool(outcome.statistics),
        )

    def _count_correct(self, logits: npt.NDArray[np.float32]) -> int:
        return int(np.count_nonzero(logits.argmax(1) == self._judge.labels))

    def _key(self) -> str:
        fields = {"pattern", "batch_norm", "batch_size", "calibration_count", "augment", "seed"}
        content = {
            "options": self._options.model_dump(mode="json", include=fields),
            "model": state_fingerprint(self._model),
            # The weights do not tell what the code of the network does with them.
            "answers": fingerprint({"logits": self._dense}),
            "train": self._train.digest,
            "judge": self._judge.digest,
            "torch": torch.__version__,
        }
        return sha256_bytes(canonical_json(content))

    def _read(self) -> dict[str, Measured]:
        if not self._checkpoint.is_file():
            return {}
        try:
            kept = _Measurements.read(self._checkpoint)
        except ArtifactError:  # damaged, or of another version: measured again
            return {}
        return dict(kept.found) if kept.inputs_sha256 == self._inputs_sha256 else {}
