"""Writing masks of positions into a graph: behind a masked convolution a constant stands where nothing is computed."""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.bake.precision.floats import with_known_types
from masksparse_deploy.bake.stored import fixed_array
from masksparse_deploy.bake.trace import GraphMismatchError, trace
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.graph import annotations as keys

__all__ = ["MaskPositions"]


class MaskPositions(ir.passes.InPlacePass):
    """Put a Where behind every convolution of a layer whose positions are masked, and change nothing else.

    Where(keep, output of the Conv, constant): keep bool (1, 1, height, width), constant (1, channels, 1, 1), the Conv's bias,
    zeros without one. The sum over inputs is what a dropped position leaves out, so a batch norm that is folded into the Conv
    is right there, and one that stays behind it too. The Where takes over the name of the tensor.

    Requires that every mask finds its convolution by the name of the weight, in the main graph, with an output of the mask's
    height and width; raises GraphMismatchError (an ArtifactError) otherwise, before anything is changed.
    """

    def __init__(self, masks: MaskSet) -> None:
        super().__init__()
        self._masks = masks

    def requires(self, model: ir.Model) -> None:
        """Every mask fits the graph."""
        list(self._places(model))

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Insert the operators."""
        for mask, conv in list(self._places(model)):
            _insert(model, mask, conv)
        return ir.passes.PassResult(model, bool(self._masks.positions))

    def _places(self, model: ir.Model) -> Iterator[tuple[PositionMask, ir.Node]]:
        """Every mask with each convolution that the exporter made of its layer, one for each call."""
        if not self._masks.positions:
            return
        traced = trace(model)
        for _, mask in sorted(self._masks.positions.items()):
            nodes = [weight.node for found in traced.named(f"{mask.layer}.weight").values() for weight in found]
            if not nodes:
                raise GraphMismatchError(
                    f"position mask of {mask.layer}: no operator of the ONNX graph multiplies by {mask.layer}.weight; the "
                    "masks were made for another model, or the export rewrites this layer: run 'masksparse learn' again, with "
                    f"'{mask.layer}' under mask.exclude if it stays so"
                )
            for node in nodes:
                _check(model, mask, node)
                yield mask, node


def _check(model: ir.Model, mask: PositionMask, node: ir.Node) -> None:
    """Raise a GraphMismatchError where the mask is none of the positions of this operator's output."""
    what = f"position mask of {mask.layer}"
    if node.op_type != "Conv" or node.graph is not model.graph:
        place = "" if node.graph is model.graph else " in a body or a function"
        raise GraphMismatchError(
            f"{what}: node {node.name}{place} is a {node.op_type}; only convolutions of the main graph have positions to mask: "
            f"add '{mask.layer}' to mask.exclude"
        )
    if node.outputs[0].shape is None:
        with_known_types(model)
    shape = node.outputs[0].shape
    positions = tuple(None if shape is None or len(shape) != 4 else shape[axis] for axis in (2, 3))
    if not all(isinstance(length, int) for length in positions):
        raise GraphMismatchError(
            f"{what}: the ONNX graph gives the output of node {node.name} no fixed height and width ({shape}), and a mask is "
            "made for one size; export the network for images of one size"
        )
    if positions != mask.keep.shape:
        raise GraphMismatchError(
            f"{what} is of {_size(mask.keep.shape)} positions, but the output of node {node.name} has {_size(positions)}; the "
            "masks were made for images of another size: run 'masksparse learn' again on images as the network gets them"
        )
    if _bias(node) is None:
        raise GraphMismatchError(
            f"{what}: the bias of node {node.name} is computed while the network runs, and dropped positions hold it; add "
            f"'{mask.layer}' to mask.exclude"
        )


def _bias(conv: ir.Node) -> npt.NDArray[np.generic] | None:
    """The Conv's stored bias, zeros if it has none; None if it is computed."""
    if len(conv.inputs) > 2 and conv.inputs[2] is not None:
        return fixed_array(conv.inputs[2])
    shape = conv.outputs[0].shape
    assert shape is not None and isinstance(shape[1], int), "checked before: a Conv with a stored weight has known channels"
    return np.zeros(shape[1], dtype=np.float32)


def _insert(model: ir.Model, mask: PositionMask, conv: ir.Node) -> None:
    bias = _bias(conv)
    assert bias is not None, "checked before"
    graph, computed = model.graph, conv.outputs[0]
    name = computed.name or conv.name or mask.layer
    constants = [
        _stored(graph, f"{name}.{suffix}", array)
        for suffix, array in (("kept_positions", mask.keep[None, None]), ("dropped_value", bias.reshape(1, -1, 1, 1)))
    ]
    readers = list(computed.uses())
    outputs = [index for index, output in enumerate(graph.outputs) if output is computed]
    where = ir.node("Where", [constants[0], computed, constants[1]], name=f"{conv.name}.positions")
    where.metadata_props.update({keys.POSITIONS: mask.digest, keys.POSITIONS_LAYER: mask.layer})
    behind = where.outputs[0]
    behind.type, behind.shape = computed.type, computed.shape
    for reader in readers:
        reader.node.replace_input_with(reader.idx, behind)
    for index in outputs:
        graph.outputs[index] = behind
    computed.name, behind.name = f"{name}.computed", name
    graph.insert_after(conv, where)


def _stored(graph: ir.Graph, name: str, array: npt.NDArray[np.generic]) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(array.shape))
    graph.initializers.add(value)
    return value


def _size(lengths: tuple[object, ...]) -> str:
    return " x ".join(str(length) for length in lengths)
