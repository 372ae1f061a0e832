"""The report of the learn stage."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record, SkippedLayer

__all__ = ["LearnReport", "MaskedLayer", "MethodAccuracy", "PositionedLayer", "Share", "Stage", "TrainingPoint"]


class MaskedLayer(Record):
    """A layer that carries a mask.

    `shape` is the weight's, (out_channels, in_channels, kernel_h, kernel_w) for a convolution; `kept_magnitude_share` is
    sum |kept weights| / sum |weights| of the trained weights; `mac_count` counts multiply-accumulates for one input sample,
    zeros included. `weight_change` is how far a method moved the kept weights, ||W' - keep W|| / ||keep W|| in the Frobenius
    norm for the trained W and the new W'; None where the weights stay frozen.
    """

    name: str
    weight_name: str
    shape: tuple[int, ...]
    pattern: str
    group_axis: int
    density: float
    kept_magnitude_share: float
    weight_count: int
    mac_count: int
    weight_change: float | None = None


class PositionedLayer(Record):
    """A convolution that computes the share `density` of its output's `height` x `width` positions, for any one image.

    `mac_count` counts multiply-accumulates for one image at all positions, zero weights included; `mask_sha256` is the digest
    of the mask.
    """

    name: str
    height: int
    width: int
    density: float
    mac_count: int
    mask_sha256: str


class MethodAccuracy(Record):
    """Top-1 of one way to choose masks, on the test set: `correct` of `total`."""

    method: str
    correct: int
    total: int


class Stage(Record):
    """One step of the recipe, measured on the images that decide: `correct` of `total`.

    `kept` tells whether later steps build on it; `passed` whether it meets the accuracy gate. A step that was left out has no
    `correct`, and the reason as its `note`; a note may also say what else is special.
    """

    name: str
    correct: int | None
    total: int
    kept: bool
    passed: bool
    note: str = ""


class Share(Record):
    """How much of the network is masked, as counts of `masked` of `total`."""

    masked: int
    total: int


class TrainingPoint(Record):
    """Mean training loss of one epoch."""

    epoch: int
    loss: float


class LearnReport(Document):
    """What was masked, what was not and why, and what it did to the accuracy.

    `accuracies` starts with "dense", then the baselines, and ends with the method whose masks were kept.
    `weights_sha256_before` is the fingerprint of all trained parameters, `_after` that of the network which the masks are for:
    equal for methods that keep weights frozen. `changed_parameters` are those that the method gave new values, by name, masked
    weights and others; empty where all are frozen.
    `decided_on` names the images that choices were made on; made on the test images, accuracies on these are optimistic.
    `recipe` has the steps of method "auto" in their order, "dense" first; empty otherwise. `permutation_count` is the number of
    tensor axes in a new order.
    `layers` and `pattern` are about weights: the method "positions" has no such layers, and the pattern "dense". `positions`
    are the layers that leave output positions out, whatever their weights are, and `positions_skipped` those that do not.
    `amdahl_limit` is the speedup of the whole network if every masked layer left out all that its pattern and its positions
    let it leave out.
    """

    kind: ClassVar[str] = "learn report"
    version: ClassVar[int] = 2

    method: str
    pattern: str
    mask_set_sha256: str
    source_sha256: str
    weights_sha256_before: str
    weights_sha256_after: str
    statistics_updated: bool
    layers: tuple[MaskedLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    convolutions: Share
    parameters: Share
    macs: Share
    amdahl_limit: float
    accuracies: tuple[MethodAccuracy, ...]
    history: tuple[TrainingPoint, ...]
    seed: int
    decided_on: Literal["validation", "test"] = "test"
    recipe: tuple[Stage, ...] = ()
    permutation_count: int = 0
    changed_parameters: tuple[str, ...] = ()
    positions: tuple[PositionedLayer, ...] = ()
    positions_skipped: tuple[SkippedLayer, ...] = ()
