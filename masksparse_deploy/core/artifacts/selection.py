"""Which layers to mask: how much each one costs, and the assignment that learning takes."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record
from masksparse_deploy.core.artifacts.learning import Share

__all__ = ["DENSE", "Assigned", "LayerSelection", "LayerSensitivity", "Measured", "SelectionStep"]

# What the assignment calls a layer without a mask.
DENSE = "dense"


class Measured(Record):
    """What masks did to the network on the images that decide: `correct` of the document's `total`.

    `drop_points` is 100 (dense - correct) / total; `divergence` is the mean over images of KL(dense || masked) of the softmax
    of the logits, in nats. `statistics_updated`: batch-norm statistics were estimated again for the masks, because that came
    closer to the dense network than its own statistics do.
    """

    correct: int
    drop_points: float
    divergence: float
    statistics_updated: bool


class LayerSensitivity(Record):
    """An eligible layer, and the network with a mask on this layer alone; its divergence is the layer's sensitivity.

    Both counts of multiply-accumulates are for one image; a sparse kernel saves `saved_mac_count` at most.
    """

    name: str
    shape: tuple[int, ...]
    mac_count: int
    saved_mac_count: int
    alone: Measured


class SelectionStep(Record):
    """A layer added to those kept before it, and the network with all of these masks; `kept` if the budget allows it."""

    layer: str
    joint: Measured
    kept: bool


class Assigned(Record):
    """What a layer is to be: a pattern as "2:4", or "dense"; and why."""

    pattern: str
    reason: str


class LayerSelection(Document):
    """A choice of layers, made for one network and one pattern.

    `method` names the masks that were measured, as "magnitude". `budget_points` is the largest drop allowed; None: no limit,
    all `targets` are masked. `targets` are the names and globs of layers with a sparse kernel on the target; None: not known.
    `layers` are in the order in which they were tried: the least divergence for each multiply-accumulate saved first.
    `joint` is the network with all masks of the assignment, which covers every layer with weights.
    """

    kind: ClassVar[str] = "layer selection"

    source_sha256: str
    pattern: str
    method: str
    budget_points: float | None
    targets: tuple[str, ...] | None
    decided_on: Literal["validation", "test"]
    data_sha256: str
    dense_correct: int
    total: int
    layers: tuple[LayerSensitivity, ...]
    steps: tuple[SelectionStep, ...]
    joint: Measured
    assignment: dict[str, Assigned]
    macs: Share
    amdahl_limit: float
    seed: int

    @property
    def chosen(self) -> tuple[str, ...]:
        """The names of the layers to mask."""
        return tuple(sorted(name for name, assigned in self.assignment.items() if assigned.pattern != DENSE))
