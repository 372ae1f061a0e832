"""Does a written ONNX file hold what it says? Reads the file anew and shares no code with the passes that wrote it."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.bake.blocks import block_misfit, count_blocks
from masksparse_deploy.core.any_pattern import Pattern, group_limit
from masksparse_deploy.core.artifacts.baking import BakedLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places

__all__ = ["Conformity", "check_conformity", "count_groups", "each_layer", "nonzeros_per_group"]

_MASKED_KEYS = (keys.PATTERN, keys.GROUP_AXIS, keys.MASK_SHA256, keys.DENSITY)


@dataclass(frozen=True, kw_only=True)
class Conformity:
    """What a file holds: the masked layers as found in it, and what is wrong in words (empty for a conforming file)."""

    layers: tuple[BakedLayer, ...]
    findings: tuple[str, ...]


def nonzeros_per_group(weight: npt.NDArray[Any], *, axis: int, size: int) -> npt.NDArray[np.uint8]:
    """Count the nonzeros of every group of `size` consecutive weights along `axis`.

    A last group that is not full counts as filled up with zeros. NaN counts as nonzero.

    Args:
        weight: any dtype and shape.
        axis: along which groups run.
        size: 1 <= size <= 255.

    Returns:
        uint8, the shape of `weight` with ceil(shape[axis] / size) groups in place of the axis.
    """
    nonzero = nonzero_places(weight).view(np.uint8)
    group_count = -(-weight.shape[axis] // size)
    counts = np.zeros((*weight.shape[:axis], group_count, *weight.shape[axis + 1 :]), dtype=np.uint8)
    for position in range(size):
        members = nonzero[(slice(None),) * axis + (slice(position, None, size),)]
        counts[(slice(None),) * axis + (slice(0, members.shape[axis]),)] += members
    return counts


def count_groups(weight: npt.NDArray[Any], pattern: Pattern, *, output_axis: int, group_axis: int) -> tuple[int, int]:
    """How many groups of the pattern a weight has, and how many keep more than it allows.

    Args:
        weight: any dtype.
        pattern: N:M, whose groups run along the input channels, if transposable along the output channels too; or 1xN.
        output_axis: where the output channels lie.
        group_axis: where the input channels lie.

    Raises:
        UsageError: the weight cannot have 1xN blocks.
    """
    if isinstance(pattern, BlockPattern):
        misfit = block_misfit(weight.shape, pattern, output_axis=output_axis, group_axis=group_axis)
        if misfit:
            raise UsageError(f"{pattern}: {misfit}")
        blocks = count_blocks(weight, pattern, output_axis=output_axis, group_axis=group_axis)
        return blocks.group_count, blocks.violation_count
    axes = (group_axis, output_axis) if pattern.transposable else (group_axis,)
    counts = [nonzeros_per_group(weight, axis=axis, size=pattern.m) for axis in axes]
    return sum(part.size for part in counts), sum(int((part > pattern.n).sum()) for part in counts)


def check_conformity(graph: Graph, masks: MaskSet) -> Conformity:
    """Hold a baked file against the masks it should carry.

    Every mask must be found on a node and its weight, annotated as docs/annotations.md says; groups must run along the
    input channels, of transposable masks along the output channels too, and keep at most N; nothing the mask drops may be
    there; the noted density and the digests must be those of the content. Every other layer must say why it is dense.

    Args:
        graph: the file, read anew.
        masks: in the axes of the stored constants (see bake.fit).
    """
    findings = list(_model_findings(graph, masks))
    layers = []
    unseen = dict(masks.layers)
    for layer in each_layer(graph):
        mask = masks.layers.get(layer.stored_name)
        if mask is None:
            findings += _dense_findings(layer)
            continue
        unseen.pop(layer.stored_name, None)
        wrong, violation_count, group_count = _masked_findings(layer, mask)
        findings += wrong
        layers.append(
            BakedLayer(
                layer=layer.stored_name.removesuffix(".weight"),
                weight_name=mask.weight_name,
                node=layer.node.name,
                initializer=layer.stored_name,
                shape=layer.stored.shape,
                pattern=str(mask.pattern),
                group_axis=mask.group_axis,
                density=float(np.count_nonzero(nonzero_places(layer.weight)) / layer.weight.size),
                group_count=group_count,
                violation_count=violation_count,
                mask_sha256=mask.digest,
            )
        )
    findings += [f"{name}: the file has no convolution or matrix product with this weight" for name in unseen]
    return Conformity(layers=tuple(layers), findings=tuple(findings))


def each_layer(graph: Graph) -> Iterator[WeightedLayer]:
    """The layers of the file, those in bodies of If, Loop and Scan included."""
    for scope in Scope(graph).walk():
        for node in scope.graph.nodes:
            layer = scope.layer(node)
            if layer is not None:
                yield layer


def _model_findings(graph: Graph, masks: MaskSet) -> Iterator[str]:
    expected = {
        keys.SCHEMA_VERSION: keys.SCHEMA,
        keys.ROLE: keys.ROLE_SPARSE,
        keys.METHOD: masks.method,
        keys.MASK_SET_SHA256: masks.digest,
        keys.SOURCE_SHA256: masks.source_sha256,
    }
    for key, value in expected.items():
        found = graph.metadata.get(key)
        if found != value:
            yield f"model: {key} is {found or 'missing'}, expected {value}"


def _dense_findings(layer: WeightedLayer) -> Iterator[str]:
    for where, metadata in _annotated(layer):
        if keys.DENSE_REASON not in metadata:
            yield f"{where}: stays dense, but {keys.DENSE_REASON} is missing"
        if any(key in metadata for key in _MASKED_KEYS):
            yield f"{where}: is annotated as masked, but the mask set has no mask for it"


def _masked_findings(layer: WeightedLayer, mask: LayerMask) -> tuple[list[str], int, int]:
    """What is wrong with one layer, how many of its groups keep too many, and of how many."""
    name = layer.node.name
    if layer.stored.shape != mask.keep.shape:
        return [f"{name}: weight {layer.stored.shape}, mask {mask.keep.shape}"], 0, 0
    wrong = []
    expected = {
        keys.PATTERN: str(mask.pattern),
        keys.GROUP_AXIS: str(layer.stored_group_axis),
        keys.MASK_SHA256: mask.digest,
        keys.DENSITY: repr(float(np.count_nonzero(nonzero_places(layer.weight)) / layer.weight.size)),
    }
    for where, metadata in _annotated(layer):
        for key, value in expected.items():
            found = metadata.get(key)
            if found != value:
                wrong.append(f"{where}: {key} is {found or 'missing'}, expected {value}")
    group_count, violation_count = count_groups(
        layer.weight, mask.pattern, output_axis=layer.output_axis, group_axis=layer.group_axis
    )
    if violation_count:
        channels = (layer.weight.shape[axis] for axis in (layer.output_axis, layer.group_axis))
        limit = group_limit(mask.pattern, *channels, of="")
        wrong.append(f"{name}: {violation_count} of {group_count} groups keep more than {limit}")
    put_back = int(np.count_nonzero(nonzero_places(layer.weight_as_stored) & ~mask.keep))
    if put_back:
        wrong.append(f"{name}: {put_back} weights that the mask drops are not zero")
    return wrong, violation_count, group_count


def _annotated(layer: WeightedLayer) -> tuple[tuple[str, Any], ...]:
    """The two places that carry a layer's annotations, each with a name for messages."""
    node = (f"node {layer.node.name}", layer.node.metadata)
    return node, (f"initializer {layer.stored_name}", layer.stored_metadata)
