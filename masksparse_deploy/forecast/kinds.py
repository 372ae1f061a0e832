"""The convolutions of a file that a sparse kernel could run, gathered by what decides on their time."""

from collections.abc import Mapping
from dataclasses import dataclass

from masksparse_deploy.core.artifacts.forecast import ConvolutionKind
from masksparse_deploy.graph.geometry import conv_geometry
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import Graph, WeightedLayer

__all__ = ["Census", "take_census"]

_GROUP = 4
_FLOATS = {"float16": "fp16", "float32": "fp32", "bfloat16": "bf16", "float64": "fp64"}
# The precisions that TensorRT has sparse convolutions in; those of TF32, BF16 and FP8 were seen nowhere.
_SPARSE_PRECISIONS = ("fp16", "int8")


@dataclass(frozen=True, eq=False, kw_only=True)
class Census:
    """The layers of each kind in graph order, and why the others cannot run a sparse kernel, by name."""

    kinds: Mapping[ConvolutionKind, tuple[WeightedLayer, ...]]
    skipped: Mapping[str, str]


def take_census(graph: Graph) -> Census:
    """Sort the weighted layers of a file's main graph; raises ArtifactError where an operator does not fit its weight."""
    kinds: dict[ConvolutionKind, tuple[WeightedLayer, ...]] = {}
    skipped: dict[str, str] = {}
    producers = {name: node.op for node in graph.nodes for name in node.outputs}
    for layer in weighted_layers(graph):
        found = _obstacle(layer, producers.get(layer.node.inputs[0], "")) or _kind(graph, layer)
        if isinstance(found, str):
            skipped[layer.node.name] = found
        else:
            kinds[found] = (*kinds.get(found, ()), layer)
    return Census(kinds=kinds, skipped=skipped)


def _obstacle(layer: WeightedLayer, producer: str) -> str:
    """Why it has no sparse kernel, "" if it may have one; `producer` is the operator that writes its input."""
    if layer.node.op != "Conv" or layer.weight.ndim != 4:
        return "only two-dimensional convolutions are forecast"
    if layer.groups != 1:
        return f"grouped convolutions ({layer.groups} groups) have no sparse kernel"
    if layer.consumer_count > 1:
        return f"its weight is read {layer.consumer_count} times, and is not masked"
    in_channels = layer.weight.shape[1]
    if in_channels % _GROUP:
        return f"{in_channels} input channels, not a multiple of {_GROUP}"
    precision = _precision(layer)
    if precision not in _SPARSE_PRECISIONS:
        return f"it computes in {precision}, in which there are no sparse kernels; FP16 and INT8 have them"
    if layer.quantized and producer != "DequantizeLinear":
        return "its weight is quantized and its input is not, so that it computes in floating point"
    return ""


def _precision(layer: WeightedLayer) -> str:
    return layer.quantized or _FLOATS.get(layer.weight.dtype.name, layer.weight.dtype.name)


def _kind(graph: Graph, layer: WeightedLayer) -> ConvolutionKind | str:
    shape = graph.shapes.get(layer.node.inputs[0], ())
    if len(shape) != 4 or shape[2] is None or shape[3] is None:
        return "the file does not fix the height and width of its input"
    out_channels, in_channels, *kernel = layer.weight.shape
    strides, pads, dilations = conv_geometry(layer.node, (shape[2], shape[3]), kernel)
    return ConvolutionKind(
        kernel=(kernel[0], kernel[1]),
        strides=(strides[0], strides[1]),
        dilations=(dilations[0], dilations[1]),
        pads=(pads[0], pads[1], pads[2], pads[3]),
        in_channels=in_channels,
        out_channels=out_channels,
        height=shape[2],
        width=shape[3],
        precision=_precision(layer),
    )
