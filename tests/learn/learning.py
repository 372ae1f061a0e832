"""Learning the masks of the tiny network in a few steps."""

from collections.abc import Mapping
from pathlib import Path

from torch import nn

from masksparse_deploy.core.any_pattern import Pattern, parse_pattern
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.masks import fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.attach import Method
from masksparse_deploy.learn.dynamic import SparseTraining
from masksparse_deploy.learn.dynamic.sparse_training import TrainingMethod
from masksparse_deploy.learn.eligibility import EligibleLayer, survey_layers
from masksparse_deploy.learn.learned import Learned
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.sparsifier import Outcome
from tests.learn.networks import labelled_by_network
from tests.models.tiny_cnn import tiny_cnn

PATTERN = NMPattern(n=2, m=4)
OPTIONS = MaskOptions(epochs=3, batch_size=32, augment="shift-mirror", device="cpu")
TRAIN = labelled_by_network(96, seed=1)


def layers(model: nn.Module, pattern: Pattern = PATTERN) -> tuple[EligibleLayer, ...]:
    return survey_layers(model, probe_model(model, (3, 8, 8)), pattern=pattern).eligible


def run(
    checkpoint: Path,
    change: Mapping[str, object] | None = None,
    *,
    method: Method | TrainingMethod = "scores",
    model: nn.Module | None = None,
    train: Samples = TRAIN,
    log_folder: Path | None = None,
    progress: Progress = silent,
) -> Outcome:
    model = model or tiny_cnn()
    options = OPTIONS.model_copy(update=change or {})
    eligible = layers(model, parse_pattern(options.pattern))
    if method != "scores" and method != "gumbel":
        training = SparseTraining(
            options=options, method=method, checkpoint=checkpoint, log_folder=log_folder, progress=progress
        )
        return training.sparsify(model, eligible, train)
    learned = Learned(options=options, method=method, checkpoint=checkpoint, log_folder=log_folder, progress=progress)
    return learned.sparsify(model, eligible, train)


def content(outcome: Outcome) -> list[object]:
    """What two runs must have in common to be called the same: digests of all masks and statistics, losses, new weights."""
    digests = {name: mask.digest for name, mask in outcome.masks.items()}
    losses = [point.loss for point in outcome.history]
    positions = {name: mask.digest for name, mask in outcome.positions.items()}
    return [digests, fingerprint(outcome.statistics), losses, fingerprint(outcome.weights), positions]
