"""The linter's judgement on one layer: does it conform, could it, why not, and what changed under its annotation."""

from collections.abc import Iterator, Mapping

from masksparse_deploy.bake.census import Census, take_census
from masksparse_deploy.bake.crosswise import crosswise_fault
from masksparse_deploy.bake.finding import Claim, Finding, channel_words, dtype_of
from masksparse_deploy.bake.inspect_blocks import inspect_blocks
from masksparse_deploy.core.artifacts.baking import LintState
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.nonzeros import nonzero_places

__all__ = ["HARDWARE_PATTERN", "inspect_layer"]

# The pattern that sparse tensor cores multiply by; what an annotation does not name is held against it.
HARDWARE_PATTERN = NMPattern(n=2, m=4)
# Below this many input or output channels sparse kernels rarely win.
_SMALL = 256
# Types that sparse kernels multiply, or that a build turns into one of them; none were seen for any other type.
_MULTIPLIED_TYPES = ("float16", "bfloat16", "float32", "int8", "uint8")
# What is noted on a node and its weight alike; other annotations belong to one of them.
_ON_BOTH = (keys.PATTERN, keys.GROUP_AXIS, keys.MASK_SHA256, keys.DENSITY, keys.DENSE_REASON)


def inspect_layer(
    layer: WeightedLayer,
    *,
    node_notes: Mapping[str, str],
    weight_notes: Mapping[str, str],
    other_readers: tuple[str, ...],
) -> Finding:
    """Judge one layer.

    Args:
        layer: operator and weight.
        node_notes: annotations of the node.
        weight_notes: annotations of the initializer.
        other_readers: operators, besides convolutions and matrix products, that read the weight too.
    """
    notes = {**weight_notes, **node_notes}
    if keys.PATTERN not in notes:
        census = take_census(layer.weight, axes=_axes(layer, HARDWARE_PATTERN), pattern=HARDWARE_PATTERN)
        state, why = _judge_plain(layer, census, notes.get(keys.DENSE_REASON), other_readers)
        return _finding(layer, state, why, census, HARDWARE_PATTERN)
    if weight_notes and node_notes and any(weight_notes.get(key) != node_notes.get(key) for key in _ON_BOTH):
        return _unheld(layer, "the annotations of node and weight differ")
    try:
        claim = Claim.parse(notes)
    except (KeyError, ValueError, UsageError):
        text = ", ".join(f"{key} {notes.get(key, 'missing')!r}" for key in (keys.PATTERN, keys.GROUP_AXIS, keys.DENSITY))
        return _unheld(layer, f"the annotation cannot be read ({text})")
    stored_axis = layer.stored_group_axis
    if stored_axis is not None and claim.group_axis != stored_axis:
        return _unheld(layer, f"annotated along axis {claim.group_axis}, but the input channels lie on axis {stored_axis}")
    pattern = claim.pattern
    if isinstance(pattern, BlockPattern):
        return inspect_blocks(layer, claim, pattern)
    census = take_census(layer.weight, axes=_axes(layer, pattern), pattern=pattern)
    drift = tuple(_drift(layer, claim, pattern, census))
    state, why = _judge_claim(layer, claim, pattern, census, drift)
    return _finding(layer, state, why, census, pattern, drift)


def _drift(layer: WeightedLayer, claim: Claim, pattern: NMPattern, census: Census) -> Iterator[str]:
    """How the weights differ from what their annotation says, in words."""
    if census.violation_count:
        along = " along input or output channels" if pattern.transposable else ""
        yield f"{census.violation_count:,} of {census.group_count:,} groups keep more than {pattern.n} weights{along}"
    change = claim.changed_density(census.nonzero_count, census.weight_count)
    if change:
        yield change
    # Only groups that keep N tell the mask: where a kept weight is zero, so is a dropped one.
    if claim.mask_sha256 is not None and (census.full or claim.unpadded_shape) and layer.stored_group_axis is not None:
        mask = _mask_found(layer, claim)
        if mask is not None and mask.digest != claim.mask_sha256:
            yield f"the mask is {mask.digest[:12]}..., noted {claim.mask_sha256[:12]}..."


def _mask_found(layer: WeightedLayer, claim: Claim) -> LayerMask | None:
    """The mask that the nonzeros show; None if some groups, not counting channels that padding added, do not keep N."""
    try:
        return LayerMask(
            weight_name=layer.stored_name,
            keep=nonzero_places(layer.weight_as_stored),
            group_axis=claim.group_axis,
            pattern=claim.pattern,
            unpadded_shape=claim.unpadded_shape,
        )
    except ArtifactError:
        return None


def _judge_claim(
    layer: WeightedLayer, claim: Claim, pattern: NMPattern, census: Census, drift: tuple[str, ...]
) -> tuple[LintState, str]:
    """A layer that says it is sparse."""
    channels = layer.weight.shape[layer.group_axis] if layer.weight.ndim > layer.group_axis else 0
    if channels % pattern.m or channels == 0:
        return "broken claim", f"annotated {pattern}, but {channel_words(channels)}: not a multiple of {pattern.m}"
    output_axis = min(layer.output_axis, layer.weight.ndim - 1)
    outputs = layer.weight.shape[output_axis]
    if pattern.transposable and (outputs % pattern.m or output_axis == layer.group_axis):
        return "broken claim", f"annotated {pattern}, but {channel_words(outputs, 'output')}: not a multiple of {pattern.m}"
    if census.violation_count:
        return "broken claim", f"annotated {pattern}, but {drift[0]} (changed after baking?)"
    denser = claim.denser_than_noted(census.nonzero_count, census.weight_count)
    if denser:
        return "broken claim", denser
    if drift and drift[-1].startswith("the mask"):
        return "broken claim", f"{pattern}, but its nonzeros are not those of the mask it names (of another layer?)"
    obstacle = _obstacle(layer)
    if obstacle is not None:
        return "not eligible", f"{pattern}, but {obstacle}"
    return "conforming", f"{pattern}{_size_remark(layer)}"


def _judge_plain(
    layer: WeightedLayer, census: Census, dense_reason: str | None, other_readers: tuple[str, ...]
) -> tuple[LintState, str]:
    """A layer that says nothing, or why it is dense."""
    pattern = HARDWARE_PATTERN
    obstacle = _obstacle(layer)
    if obstacle is not None:
        return "not eligible", obstacle
    channels = layer.weight.shape[layer.group_axis]
    if channels == 0 or channels % pattern.m:
        return "not eligible", f"{channel_words(channels)}: not a multiple of {pattern.m}"
    if census.violation_count == 0:
        return "conforming", f"{pattern}, not annotated{_size_remark(layer)}"
    elsewhere = _conforms_elsewhere(layer, census.density)
    if elsewhere is not None:
        share = f"{100 * census.violation_count / census.group_count:.3g} %"
        return (
            "wrong axis",
            f"groups of {pattern.m} run over {elsewhere}, not input channels: {share} of the groups there break",
        )
    if other_readers:
        return "not eligible", f"the weight is also read by {', '.join(other_readers)}, which zeros would change too"
    remark = _size_remark(layer)
    if layer.consumer_count > 1:
        remark += f"; {layer.consumer_count} operators share the weight and would share its mask"
    if dense_reason is not None:
        return "eligible", f"left dense when baked: {dense_reason}{remark}"
    if census.density < 1:
        kept = census.group_count - census.violation_count
        return "eligible", f"dense: {kept:,} of {census.group_count:,} groups keep at most {pattern.n}{remark}"
    return "eligible", f"dense{remark}"


def _obstacle(layer: WeightedLayer) -> str | None:
    """Why there are no sparse kernels for the layer, whatever its weights are."""
    axes = layer.weight.ndim
    if layer.weight.size == 0:
        return "the weight has no elements"
    if layer.node.op == "ConvTranspose":
        return "transposed convolution: no sparse kernels"
    if layer.node.op == "Conv" and axes != 4:
        return f"a {axes - 2}-d convolution: sparse kernels are for 2-d ones"
    if axes < 2:
        return "a product with a vector: sparse kernels take matrices"
    if layer.groups > 1:
        return f"a group convolution ({layer.groups} groups): sparse kernels take one group"
    dtype = dtype_of(layer)
    if dtype not in _MULTIPLIED_TYPES:
        return f"{dtype}: no sparse kernels of this type, which are for FP16 and INT8"
    return None


def _conforms_elsewhere(layer: WeightedLayer, density: float) -> str | None:
    """Along what else the weights are 2:4, if they are; for kernels pruned by tools that group memory order."""
    m = HARDWARE_PATTERN.m
    weight = layer.weight
    if density > HARDWARE_PATTERN.density:
        return None
    rows = weight.reshape(weight.shape[0], -1)
    in_memory_order = layer.node.op == "Conv" and layer.kernel_positions > 1 and rows.shape[1] % m == 0
    if in_memory_order and not take_census(rows, axes=(1,), pattern=HARDWARE_PATTERN).violation_count:
        return "kernel taps"
    for axis in range(min(weight.ndim, 2)):
        if axis == layer.group_axis or weight.shape[axis] % m:
            continue
        if not take_census(weight, axes=(axis,), pattern=HARDWARE_PATTERN).violation_count:
            return "output channels"
    return None


def _axes(layer: WeightedLayer, pattern: NMPattern) -> tuple[int, ...]:
    """The group axes; the last one of a weight with fewer axes than its operator takes, which is then not eligible."""
    return tuple(min(axis, max(layer.weight.ndim - 1, 0)) for axis in layer.group_axes(pattern))


def _finding(
    layer: WeightedLayer, state: LintState, why: str, census: Census, pattern: NMPattern, drift: tuple[str, ...] = ()
) -> Finding:
    crosswise = crosswise_fault(layer, pattern) if state == "conforming" else None
    if crosswise == "" and not pattern.transposable:
        why = f"{pattern}, transposable{why.removeprefix(str(pattern))}"
    return Finding(
        state=state,
        why=why,
        density=census.density,
        group_count=census.group_count,
        violation_count=census.violation_count,
        pattern=pattern if state == "conforming" else None,
        computed_share=pattern.density if state == "conforming" else 1.0,
        drift=drift,
        crosswise=crosswise,
    )


def _unheld(layer: WeightedLayer, why: str) -> Finding:
    """An annotation that the weights cannot be held against."""
    density = take_census(layer.weight, axes=_axes(layer, HARDWARE_PATTERN), pattern=HARDWARE_PATTERN).density
    return Finding(state="broken claim", why=why, density=density)


def _size_remark(layer: WeightedLayer) -> str:
    small = min(layer.weight.shape[:2]) < _SMALL if layer.weight.ndim > 1 else True
    return f"; small (fewer than {_SMALL} channels): rarely faster" if small else ""
