"""The layers that learning masks: the eligible ones, or those of an assignment."""

import dataclasses
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from torch import nn

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.artifacts.selection import DENSE, LayerSelection
from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.learn.eligibility import LayerSurvey, obstacles, survey_layers
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.probe import Probe, weight_layers
from masksparse_deploy.learn.requested import requested_pattern

__all__ = ["apply_assignment", "survey_assigned"]


def survey_assigned(model: nn.Module, probe: Probe, options: MaskOptions, *, folder: Path) -> LayerSurvey:
    """`survey_layers` with the user's options, cut down to the layers of `options.assignment` where there is one.

    Args:
        model: the network.
        probe: what `probe_model` found.
        options: pattern, pad_channels, include, exclude and assignment; `exclude` wins over the assignment.
        folder: where the configuration lies; the path of the assignment starts here.

    Raises:
        UsageError: as `survey_layers` and `apply_assignment` do, `include` is given beside an assignment, or the assignment was
            edited so that it asks for what cannot be.
        ArtifactError: the assignment is damaged, or was made for another network.
    """
    pattern = requested_pattern(options)
    if options.assignment is None:
        return survey_layers(
            model,
            probe,
            pattern=pattern,
            include=options.include,
            exclude=options.exclude,
            pad_channels=options.pad_channels,
        )
    if options.include != ("*",):
        raise UsageError(
            "mask.include and mask.assignment both say which layers to mask; remove mask.include (mask.exclude may leave more "
            "layers dense)"
        )
    path = folder / options.assignment
    selection = LayerSelection.read(path)
    _check_made_for(selection, path, state_fingerprint(model), pattern)
    obstructed = obstacles(model, probe, pattern=pattern, pad_channels=options.pad_channels)
    _check_choice(selection, path, model, obstructed, options.exclude)
    # Linear layers, and those with fewer than M channels, are surveyed only where they are named.
    survey = survey_layers(
        model,
        probe,
        pattern=pattern,
        include=("*", *selection.chosen),
        exclude=options.exclude,
        pad_channels=options.pad_channels,
    )
    return apply_assignment(survey, selection, name=path.name)


def apply_assignment(survey: LayerSurvey, selection: LayerSelection, *, name: str = "selection.json") -> LayerSurvey:
    """Leave dense what the selection leaves dense, with its reason.

    Args:
        survey: the layers of the network that the selection was made for.
        selection: see `LayerSelection`.
        name: what reasons and messages call the selection.

    Raises:
        UsageError: no layer is left to mask.
        ArtifactError: the selection does not know one of the layers.
    """
    unknown = [layer.name for layer in survey.eligible if layer.name not in selection.assignment]
    if unknown:
        raise ArtifactError(f"{name} does not know the layer {unknown[0]}; run 'masksparse select' again for this network")
    chosen = set(selection.chosen)
    skipped = [
        SkippedLayer(
            name=layer.name,
            reason=f"not chosen in {name} ({selection.assignment[layer.name].reason})",
            weight_count=layer.weight_count,
            mac_count=layer.mac_count,
        )
        for layer in survey.eligible
        if layer.name not in chosen
    ]
    eligible = tuple(layer for layer in survey.eligible if layer.name in chosen)
    if not eligible:
        raise UsageError(
            f"{name} leaves every layer dense that is not excluded; run 'masksparse select' with a larger --points, or deploy "
            "the dense network"
        )
    return dataclasses.replace(survey, eligible=eligible, skipped=(*survey.skipped, *skipped))


def _check_made_for(selection: LayerSelection, path: Path, source_sha256: str, pattern: Pattern) -> None:
    if selection.source_sha256 != source_sha256:
        raise ArtifactError(
            f"{path} was made for other weights (SHA-256 {selection.source_sha256}) than the checkpoint's ({source_sha256}); "
            "run 'masksparse select' again"
        )
    if selection.pattern != str(pattern):
        raise UsageError(
            f"{path} was made for the pattern {selection.pattern}, mask.pattern is {pattern}; run 'masksparse select' again "
            f"with --pattern {pattern}, or set mask.pattern to {selection.pattern}"
        )


def _check_choice(
    selection: LayerSelection, path: Path, model: nn.Module, obstructed: Mapping[str, str], exclude: Sequence[str]
) -> None:
    """Refuse what only an edited assignment asks for."""
    layers = weight_layers(model)
    for name, assigned in selection.assignment.items():
        if name not in layers:
            raise UsageError(f"{path} assigns a pattern to {name}, which is no layer of the network; remove it")
        if assigned.pattern not in (DENSE, selection.pattern):
            raise UsageError(
                f"{path} assigns {assigned.pattern} to {name}; a mask set has one pattern, so it must be "
                f"{selection.pattern} or {DENSE}"
            )
    for name in selection.chosen:
        if name in obstructed and not any(fnmatchcase(name, glob) for glob in exclude):
            raise UsageError(
                f"{path} assigns {selection.pattern} to {name}, which cannot carry such a mask: {obstructed[name]}; "
                f"assign {DENSE}"
            )
