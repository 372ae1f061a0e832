"""The layers of a sparse file that could be rewritten, and why some cannot."""

from collections.abc import Iterator
from dataclasses import dataclass

from masksparse_deploy.core.any_pattern import parse_pattern
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places
from masksparse_deploy.graph.positions import MaskedPositions, position_masks
from masksparse_deploy.rewrite.blocks.layout import block_size_of

__all__ = ["Site", "find_sites"]


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """A layer with 1xN blocks or masked positions.

    Attributes:
        layer: the convolution or matrix product.
        pattern: what is sparse, in words, as "1x32@0.5/16".
        n: output channels of a block; None for a layer without blocks.
        positions: which positions are computed; None for all.
        density: the share of the dense layer's multiply-accumulates that the pattern keeps.
        obstacle: why nothing can be done, in words; "" if something can.
    """

    layer: WeightedLayer
    pattern: str
    n: int | None
    positions: MaskedPositions | None
    density: float
    obstacle: str

    @property
    def name(self) -> str:
        """The node's."""
        return self.layer.node.name


def find_sites(graph: Graph) -> tuple[Site, ...]:
    """The layers of a file that are annotated as 1xN, are so without saying it, or have masked positions, in graph order.

    Raises:
        ArtifactError: an annotation is none, or not what the weights keep.
    """
    masked = {found.conv.name: found for found in position_masks(graph).values()}
    return tuple(site for scope in Scope(graph).walk() for site in _in_scope(scope, {} if scope.where else masked))


def _in_scope(scope: Scope, masked: dict[str, MaskedPositions]) -> Iterator[Site]:
    for node in scope.graph.nodes:
        layer = scope.layer(node)
        if layer is None:
            continue
        pattern = _annotated(node)
        obstacle = _obstacle(scope, layer)
        n, positions = _block_size(layer, pattern, obstacle), masked.get(node.name)
        if n is None and positions is None and not isinstance(pattern, BlockPattern):
            continue
        texts = [str(pattern) if isinstance(pattern, BlockPattern) else f"1x{n}"] if n or pattern else []
        texts += ["positions"] if positions is not None else []
        kept = 1.0 if n is None else _kept_blocks(layer, n)
        yield Site(
            layer=layer,
            pattern=" + ".join(texts),
            n=n,
            positions=positions,
            density=kept * (1.0 if positions is None else float(positions.keep.mean())),
            obstacle=obstacle,
        )


def _annotated(node: Node) -> BlockPattern | NMPattern | None:
    text = node.metadata.get(keys.PATTERN)
    try:
        return parse_pattern(text) if text else None
    except UsageError as error:
        raise ArtifactError(
            f"node {node.name}: the annotation {keys.PATTERN} is none: {error}; bake the masks again"
        ) from error


def _block_size(layer: WeightedLayer, pattern: BlockPattern | NMPattern | None, obstacle: str) -> int | None:
    """N, as annotated, or as the zeros of a convolution without annotation are; None without blocks."""
    if isinstance(pattern, BlockPattern):
        _require_kept(layer, pattern)
        return pattern.n
    return block_size_of(layer.weight) if pattern is None and not obstacle else None


def _require_kept(layer: WeightedLayer, pattern: BlockPattern) -> None:
    """Refuse an annotation that the weights do not keep."""
    if layer.node.op != "Conv":  # matrix products have their output channels on other axes, and stay dense here
        return
    name, out_channels = layer.node.name, layer.weight.shape[0]
    if out_channels % pattern.n:
        raise ArtifactError(
            f"node {name} is annotated with the pattern {pattern}, but its {out_channels} output channels are no multiple of "
            f"{pattern.n}; bake the masks that were made for this layer"
        )
    violation_count = pattern.count_violations(nonzero_places(layer.weight))
    if violation_count:
        group_count = pattern.group_count(layer.weight.shape)
        raise ArtifactError(
            f"node {name} is annotated with the pattern {pattern}, but {violation_count} of {group_count} groups hold weights "
            "in more blocks than it keeps; 'masksparse lint' tells what is there: bake the masks again"
        )


def _kept_blocks(layer: WeightedLayer, n: int) -> float:
    """The share of the blocks that hold anything; of a matrix product the share of its weights."""
    kept = nonzero_places(layer.weight)
    if layer.node.op != "Conv" or kept.shape[0] % n:
        return float(kept.mean())
    return float(kept.reshape(kept.shape[0] // n, n, kept.shape[1], -1).any(axis=(1, 3)).mean())


def _obstacle(scope: Scope, layer: WeightedLayer) -> str:
    node = layer.node
    if node.op != "Conv" or layer.weight.ndim != 4:
        return "only two-dimensional convolutions are rewritten"
    if scope.where:
        return f"it lies in {scope.where}"
    if layer.groups != 1:
        return "it has groups already" if layer.weight.shape[1] > 1 else "a depthwise convolution has no channels to leave out"
    if layer.quantized or any(kind.endswith("Linear") for kind in layer.route):
        return "its weight is quantized, and its groups would need scales of their own"
    if layer.route:
        return f"its weight passes through {layer.route[0]} first"
    if sum(other.name == node.name for other in scope.graph.nodes) > 1:
        return "another operator has the same name"
    if layer.consumer_count > 1:
        return f"its weight is read {layer.consumer_count} times, and would have to be stored again for each reader"
    return ""
