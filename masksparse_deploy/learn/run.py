"""The learn stage: a trained network and its data in, masks and the report of what they do out."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.artifacts.learning import LearnReport, MaskedLayer, MethodAccuracy, Share
from masksparse_deploy.core.artifacts.selection import DENSE
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import DataOptions, Gates, MaskOptions, ModelOptions
from masksparse_deploy.core.files import make_folder
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples, read_split
from masksparse_deploy.learn.adaprune import automatic_m, pattern_for_source
from masksparse_deploy.learn.assignment import survey_assigned
from masksparse_deploy.learn.choose import Candidate, choose
from masksparse_deploy.learn.data_check import check_data
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.evaluation import count_correct, substitutes
from masksparse_deploy.learn.methods import CHECKPOINT, Methods
from masksparse_deploy.learn.model import load_model, state_fingerprint, weights_fingerprint
from masksparse_deploy.learn.permutation.apply import permute
from masksparse_deploy.learn.positions.apply import masked_positions
from masksparse_deploy.learn.positions.report import positioned_layers, remaining_mac_count, unmasked_weights
from masksparse_deploy.learn.positions.requested import check_position_options
from masksparse_deploy.learn.positions.survey import survey_positions
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.processes import joined_processes
from masksparse_deploy.learn.requested import requested_pattern
from masksparse_deploy.learn.sparsifier import Outcome

__all__ = ["CHECKPOINT", "MASKS", "REPORT", "learn"]

MASKS = "masks.safetensors"
REPORT = "learn.json"
_GATES = Gates()


def learn(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    gates: Gates = _GATES,
    *,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> LearnReport:
    """Choose masks for a trained network, measure them and their baselines, write masks.safetensors and learn.json.

    Weights stay frozen, but with the methods of `WeightMethod`, which bring new ones in the mask set.

    The same inputs, seed, PyTorch, thread and process count give the same bytes, also when learning was interrupted and
    continued. Under a launcher of several processes all of them call this, and the main one writes and shows progress.

    Args:
        model_options: the network.
        data_options: training images for learning and calibration, validation images for choices between methods, test
            images for the accuracies.
        mask_options: method and layers.
        gates: the accuracy gate decides where the recipe, method "auto", stops.
        folder: where the configuration lies.
        out: output folder.
        progress: told of every batch.

    Raises:
        UsageError: options, network and data do not fit one another.
        ArtifactError: a damaged checkpoint or data set.
        OutputError: `out` cannot be written.
    """
    with joined_processes(mask_options) as processes:
        masks, report = _learn(
            model_options,
            data_options,
            mask_options,
            gates,
            folder=folder,
            out=out,
            device=processes.device,
            agreed=processes.agreed,
            progress=processes.shown(progress),
        )
        processes.on_main(partial(_write, out, masks, report))
    return report


def _learn(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    gates: Gates,
    *,
    folder: Path,
    out: Path,
    device: torch.device,
    agreed: Callable[[int], int],
    progress: Progress,
) -> tuple[MaskSet, LearnReport]:
    make_folder(out)
    check_position_options(mask_options)
    m = automatic_m(mask_options)
    # Refused before anything is read.
    if m is None:
        requested_pattern(mask_options)
    model = load_model(model_options, folder)
    train, test = read_split(data_options, "train", folder), read_split(data_options, "test", folder)
    splits = {"train": train, "test": test}
    if data_options.validation is not None:
        splits["validation"] = read_split(data_options, "validation", folder)
    validation = splits.get("validation", test)
    probe = probe_model(model, train.images.shape[1:])
    check_data(model, probe, splits, mask_options)
    if m is not None:
        # Which layers have whole groups depends on M alone.
        layers = survey_assigned(model, probe, _with_pattern(mask_options, NMPattern(n=1, m=m)), folder=folder).eligible
        mask_options = _with_pattern(mask_options, pattern_for_source(model, layers, m))
    pattern = requested_pattern(mask_options)
    if isinstance(pattern, BlockPattern):
        # With this machine's rounding in it, so that checkpoints of others are not gone on from.
        mask_options = _with_pattern(mask_options, pattern)
    positions = survey_positions(model, train.images.shape[1:], mask_options) if mask_options.position_rate else None
    if positions is not None and mask_options.method == "positions":
        survey = unmasked_weights(model, probe, positions)
    else:
        survey = survey_assigned(model, probe, mask_options, folder=folder)
    weights_before, source_sha256 = weights_fingerprint(model), state_fingerprint(model)

    def count(candidate: Candidate | None, samples: Samples) -> int:
        name, outcome = (candidate.name, candidate.outcome) if candidate else ("dense", Outcome(masks={}))
        network = _in_order(model, outcome)
        replaced = substitutes(network, outcome.masks, outcome.statistics, outcome.weights)
        with masked_positions(network, outcome.positions):
            return count_correct(
                network,
                samples,
                replaced,
                batch_size=mask_options.batch_size,
                what=name,
                device=device,
                progress=progress,
            )

    methods = Methods(
        model=model,
        layers=survey.eligible,
        train=train,
        options=mask_options,
        pattern=pattern,
        may_decide="validation" in splits,
        device=device,
        out=out,
        progress=progress,
    )
    methods.check()
    choice = choose(
        methods,
        lambda candidate: agreed(count(candidate, validation)),
        total=len(validation),
        largest_drop=gates.accuracy_drop_points,
    )
    accuracies = [
        MethodAccuracy(method=candidate.name if candidate else "dense", correct=count(candidate, test), total=len(test))
        for candidate in (None, *choice.tried)
    ]
    method, outcome = choice.tried[-1].name, choice.tried[-1].outcome
    permuted = _in_order(model, outcome)
    masks = MaskSet(
        layers=outcome.masks,
        source_sha256=source_sha256,
        method=method,
        skipped=survey.skipped,
        statistics=outcome.statistics,
        permutations=outcome.permutations,
        weights=outcome.weights,
        positions=outcome.positions,
    )
    masked = tuple(_masked_layer(permuted, layer, outcome) for layer in survey.eligible)
    masked_macs = sum(layer.mac_count for layer in masked)
    positioned = positioned_layers(positions, outcome) if positions is not None else ()
    saved_macs = {layer.name: layer.saved_mac_count(pattern) for layer in survey.eligible}
    remaining_macs = {name: count - saved_macs.get(name, 0) for name, count in probe.mac_counts.items()}
    report = LearnReport(
        method=method,
        pattern=str(pattern) if mask_options.method != "positions" else DENSE,
        mask_set_sha256=masks.digest,
        source_sha256=source_sha256,
        weights_sha256_before=weights_before,
        # Another order of channels is no other network; masks with new weights are for the network in the new order.
        weights_sha256_after=weights_fingerprint(permuted if outcome.weights else model, outcome.weights),
        statistics_updated=bool(masks.statistics),
        layers=masked,
        skipped=survey.skipped,
        convolutions=Share(masked=sum(layer.is_convolution for layer in survey.eligible), total=survey.convolution_count),
        parameters=Share(masked=sum(layer.weight_count for layer in survey.eligible), total=survey.parameter_count),
        macs=Share(masked=masked_macs, total=survey.mac_count),
        amdahl_limit=survey.mac_count / remaining_mac_count(remaining_macs, positioned),
        accuracies=tuple(accuracies),
        history=outcome.history,
        seed=mask_options.seed,
        decided_on="test" if data_options.validation is None else "validation",
        recipe=choice.recipe,
        permutation_count=len(outcome.permutations),
        changed_parameters=tuple(sorted(outcome.weights)),
        positions=positioned,
        positions_skipped=positions.skipped if positions is not None else (),
    )
    return masks, report


def _with_pattern(options: MaskOptions, pattern: Pattern) -> MaskOptions:
    return options.model_copy(update={"pattern": str(pattern)})


def _write(out: Path, masks: MaskSet, report: LearnReport) -> None:
    masks.write(out / MASKS)
    report.write(out / REPORT)
    (out / CHECKPOINT).unlink(missing_ok=True)


def _in_order(model: nn.Module, outcome: Outcome) -> nn.Module:
    """The network in the channel order of the masks."""
    return permute(model, outcome.permutations) if outcome.permutations else model


def _masked_layer(model: nn.Module, layer: EligibleLayer, outcome: Outcome) -> MaskedLayer:
    mask, new = outcome.masks[layer.weight_name], outcome.weights.get(layer.weight_name)
    weight = model.get_parameter(layer.weight_name).detach().double().numpy()
    magnitude = np.abs(weight)
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
        weight_change=None if new is None else _relative_change(np.where(mask.keep, weight, 0), new),
    )


def _relative_change(before: npt.NDArray[np.float64], after: npt.NDArray[np.float32]) -> float:
    norm, distance = float(np.linalg.norm(before)), float(np.linalg.norm(after - before))
    # What was all zero and is no longer has moved by all that it is.
    return distance / norm if norm else float(distance > 0)
