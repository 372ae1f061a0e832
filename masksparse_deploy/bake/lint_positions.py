"""The linter's judgement on masked positions: how many each convolution computes, and which claims are broken."""

from collections.abc import Iterator, Sequence

import numpy as np

from masksparse_deploy.core.artifacts.baking import LintLayer, LintPositions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.graph.annotations import POSITIONS_LAYER
from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Node
from masksparse_deploy.graph.position_claims import broken_claims
from masksparse_deploy.graph.positions import is_positions_node, masked_positions_of

__all__ = ["inspect_positions"]


def inspect_positions(scope: Scope, layers: Sequence[LintLayer]) -> Iterator[LintPositions]:
    """Every operator that says that it masks positions, in graph order.

    Args:
        scope: the main graph.
        layers: its layers with weights, with their shares of the arithmetic.
    """
    shares = {layer.node: layer.mac_share for layer in layers if not layer.where}
    for inner in scope.walk():
        for node in inner.graph.nodes:
            if is_positions_node(node):
                yield _judged(inner, node, shares)


def _judged(scope: Scope, node: Node, shares: dict[str, float | None]) -> LintPositions:
    def broken(why: str, convolution: str = "", position_count: int = 0, kept_count: int = 0) -> LintPositions:
        return LintPositions(
            node=node.name,
            convolution=convolution,
            layer=node.metadata.get(POSITIONS_LAYER, ""),
            position_count=position_count,
            kept_count=kept_count,
            state="broken claim",
            why=why,
            mac_share=None,
        )

    if scope.where:
        return broken(f"in {scope.where}: only positions of convolutions of the main graph can be masked")
    try:
        masked = masked_positions_of(scope.graph, node)
    except ArtifactError as error:
        return broken(str(error))
    count, kept = masked.keep.size, int(np.count_nonzero(masked.keep))
    layer = scope.layer(masked.conv)
    if layer is None:
        return broken(f"{masked.conv.name} before it has no stored weight", masked.conv.name, count, kept)
    faults = list(broken_claims(layer, masked))
    if faults:
        return broken("; ".join(faults), masked.conv.name, count, kept)
    share = shares.get(masked.conv.name)
    height, width = masked.keep.shape
    return LintPositions(
        node=node.name,
        convolution=masked.conv.name,
        layer=masked.layer,
        position_count=count,
        kept_count=kept,
        state="conforming",
        why=f"{count - kept} of {height} x {width} positions hold the bias of {masked.conv.name}",
        mac_share=None if share is None else share * (1 - kept / count),
    )
