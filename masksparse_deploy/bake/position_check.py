"""Does a file mask the positions that it should, and hold there what it must? Shares no code with the pass that wrote it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from masksparse_deploy.bake.work import mac_count
from masksparse_deploy.core.artifacts.baking import BakedPositions
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.graph.annotations import POSITIONS
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.position_claims import broken_claims
from masksparse_deploy.graph.positions import MaskedPositions, position_masks

__all__ = ["PositionCheck", "check_positions"]


@dataclass(frozen=True, kw_only=True)
class PositionCheck:
    """The convolutions with masked positions as found in a file, and what is wrong in words (empty for a conforming file)."""

    layers: tuple[BakedPositions, ...]
    findings: tuple[str, ...]


def check_positions(graph: Graph, masks: Mapping[str, PositionMask]) -> PositionCheck:
    """Hold a baked file against the masks it should carry.

    Every convolution that multiplies by the weight of a masked layer must have its mask behind it, and no other may have one;
    dropped positions must hold the convolution's bias.

    Args:
        graph: the file, read anew.
        masks: layer name -> mask.

    Raises:
        ArtifactError: an annotated operator is not of the form that baking writes.
    """
    found = {masked.conv.outputs[0]: masked for masked in position_masks(graph).values()}
    layers = []
    findings = []
    missing = set(masks)
    for layer in weighted_layers(graph):
        name = layer.stored_name.removesuffix(".weight")
        masked, mask = found.get(layer.node.outputs[0]), masks.get(name)
        if masked is None:
            if mask is not None:
                findings.append(
                    f"{layer.node.name}: all positions are computed, but the mask set has a position mask of {name}"
                )
            continue
        missing.discard(name)
        findings += [f"{masked.where.name}: {why}" for why in broken_claims(layer, masked)]
        findings += _other_mask(masked, mask, name)
        layers.append(_described(graph, layer, masked))
    findings += [f"{name}: the file masks no positions of a convolution with its weight" for name in sorted(missing)]
    return PositionCheck(layers=tuple(layers), findings=tuple(findings))


def _other_mask(masked: MaskedPositions, mask: PositionMask | None, name: str) -> Iterator[str]:
    if mask is None:
        yield f"{masked.where.name}: masks positions, but the mask set has no position mask of {name}"
    elif not np.array_equal(masked.keep, mask.keep):
        yield f"{masked.where.name}: masks other positions than the mask set does in {name}"
    elif masked.where.metadata[POSITIONS] != mask.digest:
        yield f"{masked.where.name}: {POSITIONS} is {masked.where.metadata[POSITIONS]}, expected {mask.digest}"


def _described(graph: Graph, layer: WeightedLayer, masked: MaskedPositions) -> BakedPositions:
    height, width = masked.keep.shape
    return BakedPositions(
        layer=masked.layer,
        node=layer.node.name,
        where=masked.where.name,
        height=height,
        width=width,
        kept_count=int(np.count_nonzero(masked.keep)),
        mask_sha256=masked.where.metadata[POSITIONS],
        keep=np.packbits(masked.keep).tobytes().hex(),
        mac_count=mac_count(graph, layer.node, layer.weight.shape),
    )
