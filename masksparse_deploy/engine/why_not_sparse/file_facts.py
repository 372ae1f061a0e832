"""What the ONNX file alone tells about sparse tactics: is a layer eligible, and if not, why and what can be done."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from masksparse_deploy.core.artifacts.baking import LintLayer, LintReport
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.engine.why_not_sparse.matching import aliases
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["FileLayer", "file_layers"]

_HARDWARE = NMPattern(n=2, m=4)
# What the linter's states ask for.
_ACTIONS = {
    "eligible": "mask it (mask.include) and bake again",
    "wrong axis": "prune it along the input channels: 'masksparse learn' does",
    "broken claim": "bake the file again from its masks",
}


@dataclass(frozen=True, eq=False, kw_only=True)
class FileLayer:
    """One layer with weights.

    Attributes:
        row: the linter's.
        names: of its node in an engine.
        node: None where it lies in the body of another operator.
        eligible: operator and weights allow sparse tactics.
        violation_count: groups of four input channels that keep more than two weights, as stored in the file.
        group_count: of all groups; 0 where the weight is not read or has no full groups.
        reason: why it is not eligible; "" where it is.
        action: what can be done about that.
    """

    row: LintLayer
    names: frozenset[str]
    node: Node | None
    eligible: bool
    violation_count: int
    group_count: int
    reason: str
    action: str


def file_layers(graph: Graph, lint: LintReport) -> Iterator[FileLayer]:
    """Every layer that the linter lists, in its order."""
    read = {(layer.node.name, layer.stored_name): layer for layer in weighted_layers(graph)}
    nodes = {node.name: node for node in graph.nodes if node.name}
    for row in lint.layers:
        layer = None if row.where else read.get((row.node, row.weight))
        node = layer.node if layer is not None else None if row.where else nodes.get(row.node)
        group_count, violation_count = _counts(layer) if layer is not None else (0, 0)
        eligible = row.state != "not eligible" and group_count > 0 and violation_count == 0
        reason, action = ("", "") if eligible else _why(row, layer, group_count, violation_count)
        yield FileLayer(
            row=row,
            names=frozenset({row.node} - {""}) if node is None else aliases(node),
            node=node,
            eligible=eligible,
            violation_count=violation_count,
            group_count=group_count,
            reason=reason,
            action=action,
        )


def _counts(layer: WeightedLayer) -> tuple[int, int]:
    """Groups along the input channels, and how many of them keep too many weights; no groups where they are not full."""
    weight, axis = layer.weight, layer.group_axis
    if axis >= weight.ndim or weight.size == 0 or weight.shape[axis] % _HARDWARE.m:
        return 0, 0
    return weight.size // _HARDWARE.m, _HARDWARE.count_violations(np.asarray(nonzero_places(weight)), group_axis=axis)


def _why(row: LintLayer, layer: WeightedLayer | None, group_count: int, violation_count: int) -> tuple[str, str]:
    where = f"in {row.where}: " if row.where else ""
    if layer is not None and layer.groups == 1 and group_count == 0 and layer.node.op != "ConvTranspose":
        return row.why, "append channels of zeros (mask.pad_channels) where they are worth it"
    if row.state == "conforming" and violation_count:
        return f"{where}{row.why}: {_violations(group_count, violation_count)}", "use the pattern 2:4, or rewrite 1xN blocks"
    if row.state == "conforming":
        return f"{where}{row.why}; only the main graph's layers are looked up in engines", ""
    return f"{where}{row.why}", _ACTIONS.get(row.state, "")


def _violations(group_count: int, violation_count: int) -> str:
    return f"{violation_count:,} of {group_count:,} groups of {_HARDWARE.m} input channels keep more than {_HARDWARE.n} weights"
