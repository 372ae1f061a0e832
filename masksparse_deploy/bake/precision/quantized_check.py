"""Is a written INT8 file what TensorRT can run sparse? Reads the file anew and shares no code with what wrote it."""

from collections.abc import Iterator

import numpy as np

from masksparse_deploy.bake.conformity import count_groups
from masksparse_deploy.bake.precision.quantized_layers import Grid, QuantizedLayer, QuantizedWeight, quantized_layers
from masksparse_deploy.core.any_pattern import group_limit, parse_pattern
from masksparse_deploy.core.errors import MasksparseError
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import Graph, Node

__all__ = ["check_quantized", "float_layers"]

_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def check_quantized(graph: Graph, masks: MaskSet | None = None) -> tuple[str, ...]:
    """What is wrong with an INT8 file, in words; empty for a good one.

    All zero points are INT8 and 0, all scales finite and above 0. Every convolution and matrix product by a constant either
    says why it stays in float, or multiplies INT8 by INT8: a QuantizeLinear and a DequantizeLinear in front of it, weights on
    a symmetric grid with one scale for each output channel, and a QuantizeLinear behind the kernel it is fused into, or a
    note why not. Weights that carry a pattern keep to it as integers.

    Args:
        graph: the file, as `read_graph` gives it.
        masks: if given, whatever they drop must be the integer 0, and each must be found.
    """
    findings = [finding for node in graph.nodes for finding in _parameter_findings(node, graph)]
    unseen = dict(masks.layers) if masks is not None else {}
    for layer in quantized_layers(graph):
        findings += _layer_findings(layer)
        # What stays in float is read directly, and is not for this check
        mask = unseen.pop(layer.node.inputs[1] if layer.weight is None else layer.weight.stored_name, None)
        if layer.weight is not None:
            findings += _sparsity_findings(layer, layer.weight, mask)
    findings += [f"{name}: the file has no convolution or matrix product with this weight" for name in unseen]
    return tuple(findings)


def float_layers(graph: Graph) -> dict[str, str]:
    """What an INT8 file leaves in float, operators or their outputs, with the reason that it gives, by name of the operator."""
    found = {}
    for layer in quantized_layers(graph):
        metadata = layer.node.metadata
        if keys.FLOAT_REASON in metadata:
            found[layer.node.name] = f"in float: {metadata[keys.FLOAT_REASON]}"
        elif keys.FLOAT_OUTPUT_REASON in metadata:
            found[layer.node.name] = f"gives float: {metadata[keys.FLOAT_OUTPUT_REASON]}"
    return found


def _parameter_findings(node: Node, graph: Graph) -> Iterator[str]:
    if node.domain or node.op not in _QUANTIZERS:
        return
    zero_point = graph.constants.get(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is None or zero_point.dtype != np.int8:
        yield f"{node.name}: the zero point is not a constant of INT8"
    elif zero_point.any():
        yield f"{node.name}: {np.count_nonzero(zero_point)} zero points are not 0, as {zero_point[zero_point != 0].flat[0]}"
    scale = graph.constants.get(node.inputs[1])
    if scale is None or scale.dtype != np.float32:
        yield f"{node.name}: the scale is not a constant of FP32"
    elif not (np.isfinite(scale) & (scale > 0)).all():
        yield f"{node.name}: a scale is not finite and above 0"


def _layer_findings(layer: QuantizedLayer) -> Iterator[str]:
    name, metadata = layer.node.name, layer.node.metadata
    if keys.FLOAT_REASON in metadata:
        if layer.weight is not None:
            yield f"{name}: says that it stays in float, but its weight is quantized"
        return
    if layer.weight is None:
        yield f"{name}: its weight is in float, and {keys.FLOAT_REASON} does not say why"
        return
    if layer.input is None:
        yield f"{name}: no QuantizeLinear and DequantizeLinear on its input"
    elif layer.input.scale.size != 1:
        yield f"{name}: its input has {layer.input.scale.size} scales; TensorRT takes one for an activation"
    if layer.output is None and keys.FLOAT_OUTPUT_REASON not in metadata:
        yield f"{name}: no QuantizeLinear on its output {layer.output_name}; sparse INT8 kernels give INT8"
    yield from _weight_findings(layer, layer.weight)


def _weight_findings(layer: QuantizedLayer, weight: QuantizedWeight) -> Iterator[str]:
    name, axis, rank = layer.node.name, layer.output_channel_axis, weight.levels.ndim
    channels = weight.levels.shape[axis] if axis < rank else 0
    grid = weight.grid
    if grid.scale.shape != (channels,) or grid.axis % rank != axis:
        found = f"scales {grid.scale.shape} along axis {grid.axis}"
        yield f"{name}: its weight has {found}, not one for each of {channels} output channels"
    if weight.quantizer is not None and not _same(weight.quantizer, grid):
        yield f"{name}: QuantizeLinear and DequantizeLinear of its weight differ"
    if weight.levels.dtype != np.int8 or (weight.levels == -128).any():
        yield f"{name}: its weight is not symmetric, INT8 between -127 and 127"


def _same(one: Grid, other: Grid) -> bool:
    return one.axis == other.axis and np.array_equal(one.scale, other.scale)


def _sparsity_findings(layer: QuantizedLayer, weight: QuantizedWeight, mask: LayerMask | None) -> Iterator[str]:
    name = layer.node.name
    if mask is not None:
        if mask.keep.shape != weight.levels.shape:
            yield f"{name}: weight {weight.levels.shape}, mask {mask.keep.shape}"
        elif dropped := int(np.count_nonzero(weight.levels[~mask.keep])):
            yield f"{name}: {dropped} weights that the mask drops are not the integer 0"
    metadata = layer.node.metadata
    if keys.PATTERN not in metadata:
        return
    try:
        pattern, axis = parse_pattern(metadata[keys.PATTERN]), int(metadata.get(keys.GROUP_AXIS, ""))
        outputs = layer.output_channel_axis
        group_count, broken = count_groups(weight.levels, pattern, output_axis=outputs, group_axis=axis)
        limit = group_limit(pattern, weight.levels.shape[outputs], weight.levels.shape[axis], of="integers")
    except (MasksparseError, ValueError, IndexError):
        yield f"{name}: {keys.PATTERN} and {keys.GROUP_AXIS} do not fit the weight {weight.levels.shape}"
        return
    if broken:
        yield f"{name}: {broken} of {group_count} groups keep more than {limit}"
