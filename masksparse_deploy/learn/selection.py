"""Selective masking: measure what a mask on each layer costs, and choose layers within a budget of accuracy."""

import json
import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from fractions import Fraction
from pathlib import Path
from typing import Literal

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.artifacts.learning import Share
from masksparse_deploy.core.artifacts.selection import (
    DENSE,
    Assigned,
    LayerSelection,
    LayerSensitivity,
    Measured,
    SelectionStep,
)
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.config import DataOptions, MaskOptions, ModelOptions, SelectOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import make_folder, require_file
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import read_split
from masksparse_deploy.learn.data_check import check_data
from masksparse_deploy.learn.eligibility import EligibleLayer, LayerSurvey, check_glob, survey_layers
from masksparse_deploy.learn.model import load_model, state_fingerprint
from masksparse_deploy.learn.probe import probe_model, weight_layers
from masksparse_deploy.learn.sensitivity import Meter

__all__ = ["CHECKPOINT", "DEFAULT_POINTS", "SELECTION", "allowed_loss", "choose_layers", "read_targets", "select"]

SELECTION = "selection.json"
CHECKPOINT = "select.checkpoint"
METHOD = "magnitude"
DEFAULT_POINTS = 1.0


def select(
    model_options: ModelOptions,
    data_options: DataOptions,
    mask_options: MaskOptions,
    select_options: SelectOptions,
    *,
    folder: Path,
    out: Path,
    progress: Progress = silent,
) -> LayerSelection:
    """Measure every eligible layer, choose those to mask, write selection.json.

    Every layer is masked alone first. Layers are then added in the order of least divergence for each multiply-accumulate
    saved; after each one the whole network is measured, as drops do not add up, and a layer that breaks the budget is taken
    out again. Masks are by magnitude (see `Meter`); learned masks lose less.

    The same inputs, seed, PyTorch and thread count give the same bytes, also when the selection was interrupted and continued.

    Args:
        model_options: the network.
        data_options: training images for batch-norm statistics; validation images, else test images, for the choice.
        mask_options: pattern, pad_channels, include, exclude, batch_norm, batch_size, calibration_count, augment and seed.
        select_options: budget and targets.
        folder: where the configuration lies.
        out: output folder.
        progress: told of every measurement.

    Raises:
        UsageError: options, network and data do not fit one another.
        ArtifactError: a damaged checkpoint or data set.
        OutputError: `out` cannot be written.
    """
    pattern = parse_pattern(mask_options.pattern)
    if mask_options.method == "positions":
        raise UsageError(
            "method 'positions' masks no weights, and select measures layers under masks of weights; name the layers whose "
            "positions are left out in mask.include or mask.exclude, and rewrite chooses by speed"
        )
    if isinstance(pattern, BlockPattern):
        raise UsageError(
            f"mask.pattern {pattern} asks for 1xN blocks, and select measures layers under N:M masks, which weights bear "
            "without training; name the layers to prune in mask.include or mask.exclude, and rewrite chooses by speed"
        )
    if pattern.n == pattern.m:
        raise UsageError(f"mask.pattern {pattern} keeps every weight, so there is nothing to choose; 2:4 is a sparse pattern")
    make_folder(out)
    model = load_model(model_options, folder)
    decided_on: Literal["validation", "test"] = "validation" if data_options.validation is not None else "test"
    train, judge = read_split(data_options, "train", folder), read_split(data_options, "validation", folder)
    probe = probe_model(model, train.images.shape[1:])
    check_data(model, probe, {"train": train, decided_on: judge}, mask_options)
    survey = survey_layers(
        model,
        probe,
        pattern=pattern,
        include=mask_options.include,
        exclude=mask_options.exclude,
        pad_channels=mask_options.pad_channels,
    )
    targets = None
    if select_options.targets is not None:
        targets = read_targets(folder / select_options.targets, tuple(weight_layers(model)))
    candidates = _candidates(survey, targets)

    meter = Meter(model, survey.eligible, train, judge, mask_options, checkpoint=out / CHECKPOINT)
    sensitivities = []
    for index, layer in enumerate(survey.eligible):
        sensitivities.append(_sensitivity(layer, meter.measure((layer.name,)), pattern))
        progress("measuring each layer", index + 1, len(survey.eligible))
    sensitivities.sort(key=lambda layer: layer.alone.divergence / layer.saved_mac_count)

    points = select_options.points
    if points is None and targets is None:
        points = DEFAULT_POINTS
    order = [layer.name for layer in sensitivities if layer.name in candidates]
    lowest = None if points is None else meter.dense_correct - allowed_loss(points, meter.total)
    steps = choose_layers(order, meter.measure, lowest_correct=lowest, progress=progress)
    kept = [step for step in steps if step.kept]
    chosen = {step.layer for step in kept}
    masked_macs = sum(layer.mac_count for layer in sensitivities if layer.name in chosen)
    saved_macs = sum(layer.saved_mac_count for layer in sensitivities if layer.name in chosen)
    selection = LayerSelection(
        source_sha256=state_fingerprint(model),
        pattern=str(pattern),
        method=METHOD,
        budget_points=points,
        targets=targets,
        decided_on=decided_on,
        data_sha256=judge.digest,
        dense_correct=meter.dense_correct,
        total=meter.total,
        layers=tuple(sensitivities),
        steps=steps,
        joint=kept[-1].joint if kept else _dense(meter),
        assignment=_assignment(survey, steps, pattern, points),
        macs=Share(masked=masked_macs, total=survey.mac_count),
        amdahl_limit=survey.mac_count / (survey.mac_count - saved_macs),
        seed=mask_options.seed,
    )
    selection.write(out / SELECTION)
    (out / CHECKPOINT).unlink(missing_ok=True)
    return selection


def choose_layers(
    order: Sequence[str],
    measure: Callable[[Sequence[str]], Measured],
    *,
    lowest_correct: int | None,
    progress: Progress = silent,
) -> tuple[SelectionStep, ...]:
    """Add layers one by one; leave out again each one with which too few images are right.

    Args:
        order: names of the layers, the one to try first coming first.
        measure: the network with masks on the named layers.
        lowest_correct: how many images must be right; None keeps every layer.
        progress: told after each layer.

    Returns:
        One step for each layer, in the given order.
    """
    kept: list[str] = []
    steps = []
    for index, name in enumerate(order):
        joint = measure((*kept, name))
        within = lowest_correct is None or joint.correct >= lowest_correct
        if within:
            kept.append(name)
        steps.append(SelectionStep(layer=name, joint=joint, kept=within))
        progress("adding layers", index + 1, len(order))
    return tuple(steps)


def allowed_loss(points: float, total: int) -> int:
    """How many of `total` images may be lost within `points` percentage points.

    Exact for `points` as written in decimals: 0.57 points of 10,000 images are 57, though the nearest float is a little less.
    """
    return math.floor(Fraction(repr(points)) * total / 100)


def read_targets(path: Path, names: Sequence[str]) -> tuple[str, ...]:
    """The layers for which the target brings a sparse kernel: names or globs.

    Args:
        path: one name or glob a line, "#" begins a comment; or a JSON list of texts.
        names: of all convolutions and linear layers.

    Raises:
        UsageError: no such file, nothing in it, no list of texts, or a name or glob that matches no layer.
    """
    try:
        text = require_file(path, "list of targets").read_text(encoding="utf-8")
        if text.lstrip().startswith(("[", "{")):
            content = json.loads(text)
            if not isinstance(content, list) or not all(isinstance(entry, str) for entry in content):
                raise UsageError(f"{path} is JSON, but not a list of layer names")
            entries = tuple(content)
        else:
            lines = (line.partition("#")[0].strip() for line in text.splitlines())
            entries = tuple(line for line in lines if line)
    except ValueError as error:
        raise UsageError(f"{path} is neither text with one layer name a line nor a JSON list ({error})") from error
    if not entries:
        raise UsageError(f"{path} names no layer; write the names of layers with a sparse kernel, one a line")
    for entry in entries:
        check_glob(f"{path.name}:", entry, names)
    return entries


def _candidates(survey: LayerSurvey, targets: Sequence[str] | None) -> set[str]:
    """The names of the eligible layers among the targets."""
    names = {layer.name for layer in survey.eligible}
    if targets is None:
        return names
    found = {name for name in names if any(fnmatchcase(name, target) for target in targets)}
    if not found:
        raise UsageError(
            f"none of the targets ({', '.join(targets)}) can carry a mask; eligible are "
            f"{', '.join(layer.name for layer in survey.eligible)}"
        )
    return found


def _dense(meter: Meter) -> Measured:
    return Measured(correct=meter.dense_correct, drop_points=0.0, divergence=0.0, statistics_updated=False)


def _sensitivity(layer: EligibleLayer, alone: Measured, pattern: NMPattern) -> LayerSensitivity:
    return LayerSensitivity(
        name=layer.name,
        shape=layer.shape,
        mac_count=layer.mac_count,
        saved_mac_count=layer.saved_mac_count(pattern),
        alone=alone,
    )


def _assignment(
    survey: LayerSurvey, steps: Sequence[SelectionStep], pattern: NMPattern, points: float | None
) -> dict[str, Assigned]:
    """What every layer with weights is to be, and why."""
    assignment = {layer.name: Assigned(pattern=DENSE, reason=layer.reason) for layer in survey.skipped}
    # Of the eligible layers, those that were not tried are no targets.
    assignment.update({layer.name: Assigned(pattern=DENSE, reason="not among the targets") for layer in survey.eligible})
    for step in steps:
        lost = step.joint.drop_points
        if points is None:
            reason = "among the targets"
        elif step.kept:
            reason = f"within the budget: {lost:.2f} points lost up to here, {points:g} allowed"
        else:
            reason = f"over the budget: {lost:.2f} points would be lost, {points:g} allowed"
        assignment[step.layer] = Assigned(pattern=str(pattern) if step.kept else DENSE, reason=reason)
    return assignment
