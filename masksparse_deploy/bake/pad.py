"""Channels of zeros for layers whose input channels are no multiple of M, so that the groups in the file are full."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.bake.fit import fit_masks
from masksparse_deploy.bake.stored import replace_stored, stored_tensor
from masksparse_deploy.bake.trace import GraphMismatchError, TracedWeight, trace_weights
from masksparse_deploy.bake.zero_channels import CHANNEL_AXIS, Producer, Supply, find_supply
from masksparse_deploy.core.artifacts.baking import PaddedLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph import annotations as keys

__all__ = ["PadChannels", "PadResult", "pad_channels", "padded_weights"]

Shape = tuple[int, ...]
By = Literal["pad node", "producer", "outputs only"]
# Pad takes what it appends as an input since this operator set.
_PAD_TAKES_INPUTS = 11


@dataclass
class PadResult(ir.passes.PassResult):
    """What padding did.

    Attributes:
        masks: the masks of the padded file, in the axes of the given ones; the given set itself where nothing was padded.
        layers: the layers with further channels, in graph order.
    """

    masks: MaskSet
    layers: tuple[PaddedLayer, ...]


def pad_channels(model: ir.Model, masks: MaskSet) -> PadResult:
    """Run `PadChannels` on `model`, in place."""
    result = PadChannels(masks)(model)
    assert isinstance(result, PadResult)
    return result


def padded_weights(weights: Mapping[str, npt.NDArray[np.float32]], masks: MaskSet) -> dict[str, npt.NDArray[np.float32]]:
    """Trained weights with zeros appended up to the shapes of the masks; parameter name -> weight, for each mask."""
    padded = {}
    for name, mask in masks.layers.items():
        weight = weights[name]
        widths = [(0, new - old) for new, old in zip(mask.keep.shape, weight.shape, strict=True)]
        padded[name] = np.pad(weight, widths) if any(map(any, widths)) else weight
    return padded


@dataclass(frozen=True, eq=False, kw_only=True)
class _Narrow:
    """A masked layer that lacks channels: its operator, the axis of its input that holds them, and how many are missing."""

    node: ir.Node
    weight: ir.Value
    mask: LayerMask
    pattern: NMPattern
    data_axis: int

    @property
    def channels(self) -> int:
        return int(self.mask.keep.shape[self.mask.group_axis])

    @property
    def padded_channels(self) -> int:
        return self.pattern.padded_length(self.channels)

    @property
    def missing(self) -> int:
        return self.padded_channels - self.channels


class PadChannels(ir.passes.InPlacePass):
    """Append zero input channels to every masked weight whose last group is not full, and to what the layer reads.

    What the layer reads gets its channels, where that is possible, from the layers that compute it, which have zero weights
    and biases for them (see bake.zero_channels): no operator is added, and the zeros cost what zeros in a weight cost. Else a
    Pad node is put in front. A product with zero is zero, so the file computes what it did.

    Requires that every mask fits the graph (see bake.fit), and that a weight to be padded is stored in the main graph in the
    layout its operator reads, of one group; raises GraphMismatchError (an ArtifactError) otherwise.

    The result is a `PadResult`: the masks of the padded file and what padding costs.
    """

    def __init__(self, masks: MaskSet) -> None:
        super().__init__()
        self._masks = masks

    def requires(self, model: ir.Model) -> None:
        """Every layer that lacks channels can be padded."""
        _narrow_layers(model, fit_masks(model, self._masks))

    def call(self, model: ir.Model) -> PadResult:
        """Pad weights and what is multiplied by them."""
        fitted = fit_masks(model, self._masks)
        traced = {weight.node: weight for weight in trace_weights(model)}
        before = {weight.initializer: _shape(weight.initializer) for weight in traced.values()}
        narrow = {layer.node: layer for layer in _narrow_layers(model, fitted)}
        blocks = {value for value, mask in fitted.items() if isinstance(mask.pattern, BlockPattern)}
        padding = _Padding(model.graph)
        by: dict[ir.Node, By] = {}
        widened: dict[ir.Node, By] = {}
        for node, layer in narrow.items():
            if node in by:
                continue
            supply = _free_supply(layer, narrow, model.graph)
            # further output channels would make a rest that is no block
            if supply is None or any(producer.weight in blocks for producer in supply.producers):
                padding.pad_input(layer)
                by[node] = "pad node"
                continue
            for producer in supply.producers:
                _append_outputs(producer, layer.missing)
            for value in supply.values:
                _append_length(value, CHANNEL_AXIS, layer.missing)
            by.update(dict.fromkeys(supply.consumers, "producer"))
            widened.update({producer.node: "outputs only" for producer in supply.producers})
        for constant, layer in {layer.weight: layer for layer in narrow.values()}.items():
            _append_zeros(constant, layer.mask.group_axis, layer.missing)
        by = {**widened, **by}
        changed = [traced[node] for node in model.graph if node in by]
        for weight in changed:
            _note_shape(weight, before[weight.initializer])
        masks = self._masks.padded(
            {mask.weight_name: self._grown(mask, before[value], _shape(value)) for value, mask in fitted.items()}
        )
        layers = tuple(_record(weight, by[weight.node], before[weight.initializer]) for weight in changed)
        return PadResult(model, bool(layers), masks, layers)

    def _grown(self, fitted: LayerMask, before: Shape, after: Shape) -> LayerMask:
        """The given mask, in its own axes, for a constant that has grown, in whose axes `fitted` is."""
        given = self._masks.layers[fitted.weight_name]
        if before == after:
            return given
        return given.padded(after if given.group_axis == fitted.group_axis else after[::-1])

    def ensures(self, model: ir.Model) -> None:
        """All groups are full."""
        named = {weight.initializer.name: weight for weight in trace_weights(model)}
        for name, mask in self._masks.layers.items():
            axis = named[name].group_axis
            size = mask.pattern.m if isinstance(mask.pattern, NMPattern) else 1
            assert axis is not None and _shape(named[name].initializer)[axis] % size == 0


class _Padding:
    """Puts Pad nodes into a graph; layers that read the same tensor share one."""

    def __init__(self, graph: ir.Graph) -> None:
        self._graph = graph
        self._padded: dict[tuple[ir.Value, int, int], ir.Value] = {}
        nodes = list(graph.all_nodes())
        values = [value for node in nodes for value in (*node.inputs, *node.outputs) if value is not None]
        values += [*graph.inputs, *graph.initializers.values()]
        self._taken = {*(node.name for node in nodes), *(value.name for value in values)}

    def pad_input(self, layer: _Narrow) -> None:
        """Let `layer` read what it reads with zeros appended."""
        source = layer.node.inputs[0]
        assert source is not None
        key = source, layer.data_axis, layer.missing
        if key not in self._padded:
            self._padded[key] = self._pad_node(layer, source)
        layer.node.replace_input_with(0, self._padded[key])

    def _pad_node(self, layer: _Narrow, source: ir.Value) -> ir.Value:
        rank = _data_rank(layer.node)
        assert rank is not None
        pads = np.zeros(2 * rank, dtype=np.int64)
        pads[rank + layer.data_axis] = layer.missing
        name = self._unused(f"{layer.node.name}_pads")
        amounts = ir.Value(
            name=name,
            shape=ir.Shape(pads.shape),
            type=ir.TensorType(ir.DataType.INT64),
            const_value=ir.Tensor(pads, name=name),
        )
        self._graph.register_initializer(amounts)
        # Without a third input, what is appended is zero.
        node = ir.node("Pad", [source, amounts], name=self._unused(f"{layer.node.name}_pad"))
        (padded,) = node.outputs
        padded.name, padded.type, padded.shape = self._unused(f"{source.name}_padded"), source.type, source.shape
        _append_length(padded, layer.data_axis, layer.missing)
        self._graph.insert_before(layer.node, node)
        return padded

    def _unused(self, name: str) -> str:
        while name in self._taken:
            name += "_"
        self._taken.add(name)
        return name


def _narrow_layers(model: ir.Model, fitted: Mapping[ir.Value, LayerMask]) -> tuple[_Narrow, ...]:
    """The layers that lack channels, in graph order; raises GraphMismatchError where they cannot get them."""
    layers = []
    for weight in trace_weights(model):
        mask = fitted.get(weight.initializer)
        if mask is None or not isinstance(mask.pattern, NMPattern) or not mask.is_partial:
            continue
        obstacle = _obstacle(weight, model)
        if obstacle:
            raise GraphMismatchError(
                f"mask of {mask.weight_name}: its last group of {mask.pattern.m} input channels is not full, and channels of "
                f"zeros cannot be added for node {weight.node.name} ({weight.node.op_type}), as {obstacle}; add the layer to "
                "mask.exclude"
            )
        layers.append(
            _Narrow(
                node=weight.node,
                weight=weight.initializer,
                mask=mask,
                pattern=mask.pattern,
                data_axis=_data_axis(weight.node),
            )
        )
    return tuple(layers)


def _obstacle(weight: TracedWeight, model: ir.Model) -> str:
    """Why channels cannot be added; empty if they can."""
    if weight.node.graph is not model.graph or weight.initializer.graph is not model.graph:
        return "it lies in a body or a function"
    if weight.route:
        return f"its weight passes through {weight.route[0].op} first"
    if weight.node.attributes.get_int("group", 1) != 1:
        return "it is a grouped convolution"
    if _data_rank(weight.node) is None:
        return "the file does not tell how many axes its input has"
    if model.opset_imports.get("", 1) < _PAD_TAKES_INPUTS:
        return f"the file has an operator set before {_PAD_TAKES_INPUTS}"
    return ""


def _data_rank(node: ir.Node) -> int | None:
    """How many axes the input of a layer has, None if the file does not tell."""
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None and weight is not None
    if node.op_type == "MatMul":
        return None if data.shape is None else len(data.shape)
    return len(_shape(weight))


def _data_axis(node: ir.Node) -> int:
    """The axis of a layer's input that holds its input channels."""
    if node.op_type == "MatMul":
        return (_data_rank(node) or 1) - 1
    return 0 if node.op_type == "Gemm" and node.attributes.get_int("transA", 0) != 0 else CHANNEL_AXIS


def _free_supply(layer: _Narrow, narrow: Mapping[ir.Node, _Narrow], graph: ir.Graph) -> Supply | None:
    """What can compute the missing channels of `layer`, if all that would read them lacks as many."""
    data = layer.node.inputs[0]
    assert data is not None
    supply = find_supply(data, {node: other.data_axis for node, other in narrow.items()}, graph)
    if supply is None or any(narrow[node].missing != layer.missing for node in supply.consumers):
        return None
    return supply


def _append_outputs(producer: Producer, count: int) -> None:
    _append_zeros(producer.weight, producer.output_axis, count)
    if producer.bias is not None:
        _append_zeros(producer.bias, 0, count)


def _append_zeros(value: ir.Value, axis: int, count: int) -> None:
    tensor = stored_tensor(value)
    widths = [(0, count if index == axis else 0) for index in range(len(tensor.shape))]
    padded = ir.Tensor(
        np.pad(tensor.numpy(), widths),
        dtype=tensor.dtype,
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )
    replace_stored(value, padded)
    value.shape = ir.Shape(padded.shape.numpy())


def _append_length(value: ir.Value, axis: int, count: int) -> None:
    """Correct the shape that the file tells of a computed tensor."""
    if value.shape is None:
        return
    lengths: list[int | str | ir.SymbolicDim | None] = list(value.shape)
    length = lengths[axis]
    lengths[axis] = length + count if isinstance(length, int) else None
    value.shape = ir.Shape(lengths)


def _note_shape(weight: TracedWeight, shape: Shape) -> None:
    """Say in the file what the shape was, on the node and on the constant."""
    note = {keys.UNPADDED_SHAPE: "x".join(map(str, shape))}
    weight.node.metadata_props.update(note)
    stored_tensor(weight.initializer).metadata_props.update(note)


def _record(weight: TracedWeight, by: By, before: Shape) -> PaddedLayer:
    after, axis = _shape(weight.initializer), weight.group_axis
    assert axis is not None
    extra = math.prod(after) - math.prod(before)
    positions = _positions(weight.node)
    return PaddedLayer(
        node=weight.node.name or "",
        weight=weight.initializer.name or "",
        channels=before[axis],
        padded_channels=after[axis],
        extra_weight_count=extra,
        extra_mac_count=None if positions is None else extra * positions,
        by=by,
    )


def _positions(node: ir.Node) -> int | None:
    """How often a sample meets every weight of the layer; None where the file does not tell."""
    shape = node.outputs[0].shape
    if shape is None or len(shape) < 2:
        return None
    lengths = shape[1:-1] if node.op_type in ("Gemm", "MatMul") else shape[2:]
    known = [length for length in lengths if isinstance(length, int)]
    return math.prod(known) if len(known) == len(lengths) else None


def _shape(value: ir.Value) -> Shape:
    return tuple(stored_tensor(value).shape.numpy())
