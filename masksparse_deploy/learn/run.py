"""The learn stage: a trained network and its data in, masks and the report of what they do out."""

from pathlib import Path

import numpy as np
import torch
from torch import nn

from masksparse_deploy.core.artifacts.learning import LearnReport, MaskedLayer, MethodAccuracy, Share
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions
from masksparse_deploy.core.files import make_folder
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import read_split
from masksparse_deploy.learn.assignment import survey_assigned
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.data_check import check_data
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.magnitude import Magnitude, MagnitudeBatchNorm
from masksparse_deploy.learn.model import load_model, state_fingerprint, weights_fingerprint
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.scores import Scores
from masksparse_deploy.learn.sparsifier import Outcome, Sparsifier

__all__ = ["CHECKPOINT", "MASKS", "REPORT", "learn"]

MASKS = "masks.safetensors"
REPORT = "learn.json"
CHECKPOINT = "learn.checkpoint"


def learn(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    *,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> LearnReport:
    """Choose masks for a trained network, measure them and their baselines, write masks.safetensors and learn.json.

    The same inputs, seed, PyTorch and thread count give the same bytes, also when learning was interrupted and continued.

    Args:
        model_options: the network.
        data_options: training images for learning and calibration, test images for the accuracies.
        mask_options: method and layers.
        folder: where the configuration lies.
        out: output folder.
        progress: told of every batch.

    Raises:
        UsageError: options, network and data do not fit one another.
        ArtifactError: a damaged checkpoint or data set.
        OutputError: `out` cannot be written.
    """
    make_folder(out)
    pattern = NMPattern.parse(mask_options.pattern)
    model = load_model(model_options, folder)
    train, test = read_split(data_options, "train", folder), read_split(data_options, "test", folder)
    probe = probe_model(model, train.images.shape[1:])
    check_data(model, probe, {"train": train, "test": test}, mask_options)
    survey = survey_assigned(model, probe, mask_options, folder=folder)
    weights_before, source_sha256 = weights_fingerprint(model), state_fingerprint(model)

    def accuracy(method: str, outcome: Outcome | None) -> MethodAccuracy:
        replaced = substitutes(model, outcome.masks, outcome.statistics) if outcome else {}
        correct = count_correct(model, test, replaced, batch_size=mask_options.batch_size, what=method, progress=progress)
        return MethodAccuracy(method=method, correct=correct, total=len(test))

    accuracies = [accuracy("dense", None)]
    method, outcome = "", Outcome(masks={})
    for method, sparsifier in _sparsifiers(model, mask_options, pattern, out, progress):
        outcome = sparsifier.sparsify(model, survey.eligible, train)
        accuracies.append(accuracy(method, outcome))

    masks = MaskSet(
        layers=outcome.masks,
        source_sha256=source_sha256,
        method=method,
        skipped=survey.skipped,
        statistics=outcome.statistics,
    )
    masked = tuple(_masked_layer(model, layer, outcome.masks[layer.weight_name]) for layer in survey.eligible)
    masked_macs = sum(layer.mac_count for layer in masked)
    report = LearnReport(
        method=method,
        pattern=str(pattern),
        mask_set_sha256=masks.digest,
        source_sha256=source_sha256,
        weights_sha256_before=weights_before,
        weights_sha256_after=weights_fingerprint(model),
        statistics_updated=bool(masks.statistics),
        layers=masked,
        skipped=survey.skipped,
        convolutions=Share(masked=sum(layer.is_convolution for layer in survey.eligible), total=survey.convolution_count),
        parameters=Share(masked=sum(layer.weight_count for layer in survey.eligible), total=survey.parameter_count),
        macs=Share(masked=masked_macs, total=survey.mac_count),
        amdahl_limit=survey.mac_count / (survey.mac_count - masked_macs * (1 - pattern.density)),
        accuracies=tuple(accuracies),
        history=outcome.history,
        seed=mask_options.seed,
    )
    masks.write(out / MASKS)
    report.write(out / REPORT)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return report


def _sparsifiers(
    model: nn.Module, options: MaskOptions, pattern: NMPattern, out: Path, progress: Progress
) -> list[tuple[str, Sparsifier]]:
    """The baselines and the user's method, which comes last; its masks are kept."""
    magnitude = ("magnitude", Magnitude(pattern=pattern))
    batch_norm = (
        "magnitude + batch norm",
        MagnitudeBatchNorm(
            pattern=pattern,
            calibration_count=options.calibration_count,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=progress,
        ),
    )
    methods: list[tuple[str, Sparsifier]] = [magnitude]
    # Without batch norm the second baseline would be the first one again.
    if batch_norms(model):
        methods.append(batch_norm)
    if options.method == "scores":
        return [*methods, ("scores", Scores(options=options, checkpoint=out / CHECKPOINT, progress=progress))]
    return methods if options.batch_norm else methods[::-1]


def _masked_layer(model: nn.Module, layer: EligibleLayer, mask: LayerMask) -> MaskedLayer:
    magnitude = torch.abs(model.get_parameter(layer.weight_name).detach()).double().numpy()
    total = float(magnitude.sum())
    return MaskedLayer(
        name=layer.name,
        weight_name=layer.weight_name,
        shape=layer.shape,
        pattern=str(mask.pattern),
        group_axis=GROUP_AXIS,
        density=float(np.count_nonzero(mask.keep) / mask.keep.size),
        # Of a layer that is all zero, nothing is lost.
        kept_magnitude_share=float(magnitude[mask.keep].sum()) / total if total else 1.0,
        weight_count=layer.weight_count,
        mac_count=layer.mac_count,
    )
