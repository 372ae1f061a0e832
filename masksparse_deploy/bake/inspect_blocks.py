"""The linter's judgement on a layer that says it has 1xN blocks."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from masksparse_deploy.bake.blocks import BlockCounts, block_misfit, count_blocks
from masksparse_deploy.bake.finding import Claim, Finding, dtype_of
from masksparse_deploy.core.any_pattern import group_limit
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.graph.layout import as_stored
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["inspect_blocks"]


def inspect_blocks(layer: WeightedLayer, claim: Claim, pattern: BlockPattern) -> Finding:
    """Hold the weights of a layer against the 1xN blocks that its annotation claims, along the axis of its input channels."""
    output_axis, group_axis = layer.output_axis, layer.group_axis
    misfit = block_misfit(layer.weight.shape, pattern, output_axis=output_axis, group_axis=group_axis)
    if misfit:
        density = float(np.count_nonzero(layer.weight) / max(layer.weight.size, 1))
        return Finding(state="broken claim", why=f"annotated {pattern}, but {misfit}", density=density)
    counts = count_blocks(layer.weight, pattern, output_axis=output_axis, group_axis=group_axis)
    channels = layer.weight.shape[output_axis], layer.weight.shape[group_axis]
    drift = tuple(_drift(layer, claim, pattern, counts))
    obstacle = _obstacle(layer)
    finding = Finding(
        state="conforming",
        why=f"{pattern}{_remark(layer)}",
        density=counts.nonzero_count / layer.weight.size,
        group_count=counts.group_count,
        violation_count=counts.violation_count,
        pattern=pattern,
        computed_share=pattern.kept_blocks(*channels) / counts.used.size,
        drift=drift,
        crosswise="it has 1xN blocks, which are no N:M groups",
    )
    broken = _broken(claim, pattern, counts, drift, layer.weight.size)
    if not broken and obstacle is None:
        return finding
    return replace(
        finding,
        state="broken claim" if broken else "not eligible",
        why=broken or f"{pattern}, but {obstacle}",
        pattern=None,
        computed_share=1.0,
        crosswise=None,
    )


def _drift(layer: WeightedLayer, claim: Claim, pattern: BlockPattern, counts: BlockCounts) -> Iterator[str]:
    """How the weights differ from what their annotation says, in words."""
    if counts.violation_count:
        channels = layer.weight.shape[layer.output_axis], layer.weight.shape[layer.group_axis]
        limit = group_limit(pattern, *channels)
        yield f"{counts.violation_count:,} of {counts.group_count:,} groups keep more than {limit}"
    change = claim.changed_density(counts.nonzero_count, layer.weight.size)
    if change:
        yield change
    # Only as many blocks as the pattern keeps tell the mask: where a kept one is zero, so is a dropped one.
    if claim.mask_sha256 is not None and counts.full and layer.stored_group_axis is not None:
        digest = _mask_found(layer, claim, pattern, counts).digest
        if digest != claim.mask_sha256:
            yield f"the mask is {digest[:12]}..., noted {claim.mask_sha256[:12]}..."


def _mask_found(layer: WeightedLayer, claim: Claim, pattern: BlockPattern, counts: BlockCounts) -> LayerMask:
    """The mask that the blocks show, in the axes of the stored constant."""
    shape = np.moveaxis(layer.weight, (layer.output_axis, layer.group_axis), (0, 1)).shape
    keep = np.moveaxis(pattern.expand(counts.used, shape), (0, 1), (layer.output_axis, layer.group_axis))
    return LayerMask(
        weight_name=layer.stored_name,
        keep=as_stored(keep, layer.layout),
        group_axis=claim.group_axis,
        pattern=pattern,
    )


def _broken(claim: Claim, pattern: BlockPattern, counts: BlockCounts, drift: tuple[str, ...], weight_count: int) -> str:
    """Why the claim does not hold, in words; empty if it does."""
    if counts.violation_count:
        return f"annotated {pattern}, but {drift[0]} (changed after baking?)"
    if drift and drift[-1].startswith("the mask"):
        return f"{pattern}, but its blocks are not those of the mask it names (of another layer?)"
    return claim.denser_than_noted(counts.nonzero_count, weight_count)


def _obstacle(layer: WeightedLayer) -> str | None:
    """Why no rewrite could leave the zeros out, whatever the weights are."""
    if layer.node.op == "ConvTranspose":
        return "transposed convolution: its output channels are not computed in blocks"
    if layer.groups > 1:
        return f"a group convolution ({layer.groups} groups): its input channels are split already"
    return None


def _remark(layer: WeightedLayer) -> str:
    """What keeps the rewrite, as it is, from a layer that conforms."""
    if layer.quantized:
        return f"; {dtype_of(layer)}: 'masksparse rewrite' leaves it dense"
    return "" if layer.node.op == "Conv" else "; no convolution: 'masksparse rewrite' leaves it dense"
