"""The linter's judgement on one layer: does it conform, could it, and why not."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from masksparse_deploy.bake.conformity import nonzeros_per_group
from masksparse_deploy.core.artifacts.baking import LintState
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import WeightedLayer

__all__ = ["HARDWARE_PATTERN", "Finding", "inspect_layer"]

# The pattern that sparse tensor cores multiply by; what an annotation does not name is held against it.
HARDWARE_PATTERN = NMPattern(n=2, m=4)
# Below this many input or output channels sparse kernels rarely win.
_SMALL = 256


@dataclass(frozen=True, kw_only=True)
class Finding:
    """State and reason, and how many of the groups along the input channels keep more than N, for which N:M."""

    state: LintState
    why: str
    density: float
    group_count: int
    violation_count: int
    pattern: NMPattern


def inspect_layer(
    layer: WeightedLayer,
    *,
    stored_name: str,
    node_notes: Mapping[str, str],
    weight_notes: Mapping[str, str],
    other_readers: tuple[str, ...],
) -> Finding:
    """Judge one layer.

    Args:
        layer: operator and weight.
        stored_name: name of the initializer the weight comes from.
        node_notes: annotations of the node.
        weight_notes: annotations of the initializer; empty where a transposition lies between.
        other_readers: operators, besides convolutions and matrix products, that read the weight too.
    """
    density = float(np.count_nonzero(layer.weight) / max(layer.weight.size, 1))
    notes = {**weight_notes, **node_notes}
    pattern = HARDWARE_PATTERN
    if keys.PATTERN in notes:
        if weight_notes and node_notes and dict(weight_notes) != dict(node_notes):
            return _without_counts(density, "broken claim", "the annotations of node and weight differ")
        try:
            pattern = NMPattern.parse(notes[keys.PATTERN])
            axis, claimed_density = int(notes[keys.GROUP_AXIS]), float(notes.get(keys.DENSITY, "1"))
        except (KeyError, ValueError, UsageError):
            text = ", ".join(f"{key} {notes.get(key, 'missing')!r}" for key in (keys.PATTERN, keys.GROUP_AXIS, keys.DENSITY))
            return _without_counts(density, "broken claim", f"the annotation cannot be read ({text})")
        if axis != layer.group_axis:
            why = f"annotated along axis {axis}, but the input channels lie on axis {layer.group_axis}"
            return _without_counts(density, "broken claim", why)
    counts = nonzeros_per_group(layer.weight, axis=layer.group_axis, size=pattern.m)
    violation_count = int((counts > pattern.n).sum())
    exact = violation_count == 0 and bool((counts == pattern.n).all())
    if keys.PATTERN in notes:
        state, why = _judge_claim(
            layer, pattern, notes, stored_name, density, claimed_density, violation_count, counts.size, exact
        )
    else:
        state, why = _judge_plain(layer, notes.get(keys.DENSE_REASON), density, violation_count, counts.size, other_readers)
    return Finding(
        state=state,
        why=why,
        density=density,
        group_count=int(counts.size),
        violation_count=violation_count,
        pattern=pattern,
    )


def _judge_claim(
    layer: WeightedLayer,
    pattern: NMPattern,
    notes: Mapping[str, str],
    stored_name: str,
    density: float,
    claimed_density: float,
    violation_count: int,
    group_count: int,
    exact: bool,
) -> tuple[LintState, str]:
    """A layer that says it is sparse."""
    channels = layer.weight.shape[layer.group_axis]
    if channels % pattern.m:
        return "broken claim", f"annotated {pattern}, but {_channels(channels)}: not a multiple of {pattern.m}"
    if violation_count:
        many = f"{violation_count:,} of {group_count:,} groups keep more than {pattern.n} weights"
        return "broken claim", f"annotated {pattern}, but {many} (changed after baking?)"
    # Fewer nonzeros than noted are harmless: weights too small for a lower precision vanish when a file is converted.
    if density > claimed_density + 0.5 / layer.weight.size:
        return "broken claim", f"annotated with density {claimed_density:g}, but {density:.4g} of the weights are not zero"
    if exact and keys.MASK_SHA256 in notes:
        keep = layer.weight != 0
        mask = LayerMask(weight_name=stored_name, keep=keep, group_axis=layer.group_axis, pattern=pattern)
        if mask.digest != notes[keys.MASK_SHA256]:
            return "broken claim", f"{pattern}, but its nonzeros are not those of the mask it names (of another layer?)"
    obstacle = _obstacle(layer)
    if obstacle is not None:
        return "not eligible", f"{pattern}, but {obstacle}"
    return "conforming", f"{pattern}{_size_remark(layer)}"


def _judge_plain(
    layer: WeightedLayer,
    dense_reason: str | None,
    density: float,
    violation_count: int,
    group_count: int,
    other_readers: tuple[str, ...],
) -> tuple[LintState, str]:
    """A layer that says nothing, or why it is dense."""
    pattern = HARDWARE_PATTERN
    channels = layer.weight.shape[layer.group_axis]
    obstacle = _obstacle(layer)
    if obstacle is not None:
        return "not eligible", obstacle
    if channels == 0 or channels % pattern.m:
        return "not eligible", f"{_channels(channels)}: not a multiple of {pattern.m}"
    if violation_count == 0:
        return "conforming", f"{pattern}, not annotated{_size_remark(layer)}"
    elsewhere = _conforms_elsewhere(layer, density)
    if elsewhere is not None:
        share = f"{100 * violation_count / group_count:.3g} %"
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
    if density < 1:
        kept = group_count - violation_count
        return "eligible", f"dense: {kept:,} of {group_count:,} groups keep at most {pattern.n}{remark}"
    return "eligible", f"dense{remark}"


def _obstacle(layer: WeightedLayer) -> str | None:
    """Why there are no sparse kernels for the layer, whatever its weights are."""
    axes = layer.weight.ndim
    if layer.node.op == "ConvTranspose":
        return "transposed convolution: no sparse kernels"
    if layer.node.op == "Conv" and axes != 4:
        return f"a {axes - 2}-d convolution: sparse kernels are for 2-d ones"
    if axes < 2:
        return "a product with a vector: sparse kernels take matrices"
    if layer.groups > 1:
        return f"a group convolution ({layer.groups} groups): sparse kernels take one group"
    return None


def _conforms_elsewhere(layer: WeightedLayer, density: float) -> str | None:
    """Along what else the weights are 2:4, if they are; for kernels pruned by tools that group memory order."""
    n, m = HARDWARE_PATTERN.n, HARDWARE_PATTERN.m
    weight = layer.weight
    if density > n / m:
        return None
    rows = weight.reshape(weight.shape[0], -1)
    in_memory_order = layer.node.op == "Conv" and layer.kernel_positions > 1 and rows.shape[1] % m == 0
    if in_memory_order and not (nonzeros_per_group(rows, axis=1, size=m) > n).any():
        return "kernel taps"
    for axis in range(min(weight.ndim, 2)):
        if axis == layer.group_axis or weight.shape[axis] % m:
            continue
        if not (nonzeros_per_group(weight, axis=axis, size=m) > n).any():
            return "output channels"
    return None


def _without_counts(density: float, state: LintState, why: str) -> Finding:
    return Finding(state=state, why=why, density=density, group_count=0, violation_count=0, pattern=HARDWARE_PATTERN)


def _channels(count: int) -> str:
    return f"{count} input channel" + ("" if count == 1 else "s")


def _size_remark(layer: WeightedLayer) -> str:
    small = min(layer.weight.shape[:2]) < _SMALL if layer.weight.ndim > 1 else True
    return f"; small (fewer than {_SMALL} channels): rarely faster" if small else ""
