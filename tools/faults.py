"""Faults of engines and files, as changes of an ONNX model; planted_faults.py sees which of them `validate` finds."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["FAULTS", "Fault", "Site", "one_weight"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Site:
    """Where faults are planted.

    Attributes:
        model: the sparse model, which a fault changes.
        dense: its dense twin.
        layer: a masked convolution with a residual addition behind it.
        other: another masked layer with a weight of the same shape.
        masked: all masked layers.
        unmasked: a layer that no mask changed.
        largest: the largest magnitude that the output of `layer` has on the samples.
    """

    model: onnx.ModelProto
    dense: onnx.ModelProto
    layer: str
    other: str
    masked: tuple[str, ...]
    unmasked: str
    largest: float

    def node(self, name: str) -> onnx.NodeProto:
        """The operator called `name`."""
        return _named(self.model, name)

    def weight(self, layer: str) -> str:
        """The initializer of the layer's weight; of an INT8 layer the integers."""
        return _weight(self.model, layer)

    def change(self, name: str, change: Callable[[Array], Array]) -> None:
        """Replace an initializer by `change` of it, in its own type."""
        tensor = _initializer(self.model, name)
        array = numpy_helper.to_array(tensor)
        new = numpy_helper.from_array(np.asarray(change(array.copy()), dtype=array.dtype), name)
        new.metadata_props.extend(tensor.metadata_props)
        tensor.CopyFrom(new)

    def parameters(self, layer: str) -> tuple[str, ...]:
        """Initializers with an entry for each output channel: weight, scales and zero points, bias."""
        quantizer = _maker(self.model, self.node(layer).input[1])
        names = [self.weight(layer), *(quantizer.input[1:] if quantizer is not None else ())]
        return (*names, _source(self.model, self.node(layer).input[2]))

    def insert(self, tensor: str, op: str, *, before: bool, **attributes: Any) -> None:
        """Put an operator behind what makes `tensor`, whose name the result takes; with `before`, in front of its readers."""
        self.insert_nodes(tensor, [(op, [], attributes)], before=before)

    def insert_nodes(self, tensor: str, steps: list[tuple[str, list[str], dict[str, Any]]], *, before: bool) -> None:
        """The same for several operators, one behind the other: type, further inputs, attributes."""
        nodes, value = [], tensor if before else f"{tensor}/sound"
        for index, (op, more, attributes) in enumerate(steps):
            last = index == len(steps) - 1
            result = tensor if last and not before else f"{tensor}/step{index}"
            nodes.append(helper.make_node(op, [value, *more], [result], name=f"{tensor}/fault{index}", **attributes))
            value = result
        found = list(self.model.graph.node)
        if before:
            for node in found:
                node.input[:] = [value if name == tensor else name for name in node.input]
            place = 0
        else:
            place = next(index for index, node in enumerate(found) if tensor in node.output) + 1
            found[place - 1].output[0] = f"{tensor}/sound"
        del self.model.graph.node[:]
        self.model.graph.node.extend([*found[:place], *nodes, *found[place:]])

    def constant(self, name: str, value: Array) -> str:
        """Add an initializer; returns its name."""
        self.model.graph.initializer.append(numpy_helper.from_array(value, name))
        return name


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A fault, and where it belongs.

    Attributes:
        name: in words.
        plant: makes the change.
        layers: those that it is in, by their attribute names in Site.
        in_graph: it changes operators; a faulty export does that to both twins alike.
        precisions: that know it.
    """

    name: str
    plant: Callable[[Site], None]
    layers: tuple[str, ...] = ("layer",)
    in_graph: bool = False
    precisions: tuple[str, ...] = ("fp32", "fp16", "int8")


def one_weight(site: Site, factor: float, layer: str | None = None) -> None:
    """Multiply the largest weight of a layer by `factor`."""

    def change(array: Array) -> Array:
        index = np.unravel_index(np.abs(array.astype(np.float64)).argmax(), array.shape)
        array[index] = np.clip(np.rint(array[index] * factor), -128, 127) if array.dtype == np.int8 else array[index] * factor
        return array

    site.change(site.weight(layer or site.layer), change)


def _swap(site: Site) -> None:
    first, second = site.node(site.layer), site.node(site.other)
    for place in (1, 2):
        first.input[place], second.input[place] = second.input[place], first.input[place]
    # what makes weights of integers must stand before all that reads them
    makers, names = set(), [*first.input[1:], *second.input[1:]]
    while names:
        if (node := _maker(site.model, names.pop())) is not None:
            makers.add(node.name)
            names += node.input
    found = [onnx.NodeProto.FromString(node.SerializeToString()) for node in site.model.graph.node]
    found.sort(key=lambda node: node.name not in makers)
    del site.model.graph.node[:]
    site.model.graph.node.extend(found)


def _mask_of_another(site: Site) -> None:
    keep = numpy_helper.to_array(_initializer(site.model, site.weight(site.other))) != 0
    dense = numpy_helper.to_array(_initializer(site.dense, _weight(site.dense, site.layer)))
    site.change(site.weight(site.layer), lambda _: np.where(keep, dense, dense.dtype.type(0)))


def _stale_statistics(site: Site) -> None:
    """Weights and bias as without re-estimation, masks as they are."""
    _as_dense(site, site.layer, numpy_helper.to_array(_initializer(site.model, site.weight(site.layer))) != 0)


def _unmasked(site: Site) -> None:
    for layer in site.masked:
        _as_dense(site, layer, np.array(True))


def _as_dense(site: Site, layer: str, keep: Array) -> None:
    """Give a layer the numbers of its dense twin, weights as far as they are kept."""
    for name in site.parameters(layer):
        dense = numpy_helper.to_array(_initializer(site.dense, name))
        kept = np.where(keep, dense, dense.dtype.type(0)) if name == site.weight(layer) else dense
        site.change(name, partial(_replaced, kept))


def _replaced(new: Array, old: Array) -> Array:
    assert new.shape == old.shape, "the twins have the same shapes"
    return new


def _permuted(site: Site) -> None:
    count = len(numpy_helper.to_array(_initializer(site.model, site.weight(site.layer))))
    order = np.roll(np.arange(count), 1)
    for name in site.parameters(site.layer):
        site.change(name, lambda array: array[order] if array.ndim and len(array) == count else array)


def _bias_left_out(site: Site) -> None:
    site.change(_source(site.model, site.node(site.layer).input[2]), np.zeros_like)


def _shifted_padding(site: Site) -> None:
    for attribute in site.node(site.layer).attribute:
        if attribute.name == "pads":
            attribute.ints[:] = [2, 2, 0, 0]


def _residual_left_out(site: Site) -> None:
    """The addition behind the layer passes on what comes from the layer alone."""
    reached = {site.node(site.layer).output[0]}
    for node in site.model.graph.node:
        if not reached & set(node.input):
            continue
        if node.op_type == "Add":
            inside = next(name for name in node.input if name in reached)
            node.op_type = "Identity"
            node.input[:] = [inside]
            return
        reached |= set(node.output)


def _half_arithmetic(site: Site) -> None:
    """Every operand of every layer is rounded to FP16 first; sums stay as they are."""
    for name in (*site.masked, site.unmasked):
        site.change(site.weight(name), lambda array: array.astype(np.float16).astype(np.float32))
        # operators of its own for each layer: others may read the same tensor
        node = site.node(name)
        tensors = (node.input[0], f"{name}/half", f"{name}/single")
        casts = [
            helper.make_node("Cast", [source], [target], name=target, to=kind)
            for source, target, kind in zip(tensors, tensors[1:], (TensorProto.FLOAT16, TensorProto.FLOAT), strict=False)
        ]
        node.input[0] = tensors[-1]
        found = list(site.model.graph.node)
        place = next(index for index, other in enumerate(found) if other.name == name)
        del site.model.graph.node[:]
        site.model.graph.node.extend([*found[:place], *casts, *found[place:]])


def _scaled_input(site: Site) -> None:
    (image,) = site.model.graph.input
    dtype = helper.tensor_dtype_to_np_dtype(image.type.tensor_type.elem_type)
    factor = site.constant("fault/factor", np.asarray(1.02, dtype))
    site.insert_nodes(image.name, [("Mul", [factor], {})], before=True)


def _extra_relu(site: Site) -> None:
    site.insert(site.node(site.layer).output[0], "Relu", before=False)


def _clipped(site: Site, share: float) -> None:
    output = site.node(site.layer).output[0]
    dtype = numpy_helper.to_array(_initializer(site.model, site.parameters(site.layer)[-1])).dtype
    limits = [
        site.constant(f"fault/{name}", np.asarray(sign * share * site.largest, dtype))
        for name, sign in (("low", -1), ("high", 1))
    ]
    site.insert_nodes(output, [("Clip", limits, {})], before=False)


def _weight_scale(site: Site) -> None:
    maker = _maker(site.model, site.node(site.layer).input[1])
    assert maker is not None, "an INT8 layer reads a DequantizeLinear"
    site.change(maker.input[1], lambda array: array * 1.05)


def _activation(site: Site, place: int, change: Callable[[Array], Array]) -> None:
    """Change scale (1) or zero point (2) of the grid that the layer's input lies on."""
    maker = _maker(site.model, site.node(site.layer).input[0])
    assert maker is not None, "an INT8 layer reads a DequantizeLinear"
    site.change(maker.input[place], change)


def _named(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    node: onnx.NodeProto = next(node for node in model.graph.node if node.name == name)
    return node


def _maker(model: onnx.ModelProto, tensor: str) -> onnx.NodeProto | None:
    return next((node for node in model.graph.node if tensor in node.output), None)


def _source(model: onnx.ModelProto, tensor: str) -> str:
    """The initializer behind a tensor, through what converts it."""
    while (maker := _maker(model, tensor)) is not None:
        tensor = maker.input[0]
    return tensor


def _weight(model: onnx.ModelProto, layer: str) -> str:
    return _source(model, _named(model, layer).input[1])


def _initializer(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    tensor: onnx.TensorProto = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    return tensor


FAULTS = (
    Fault(name="one weight 10 % smaller", plant=lambda site: one_weight(site, 0.9)),
    Fault(name="one weight of the other sign", plant=lambda site: one_weight(site, -1.0)),
    Fault(
        name="one weight 10 % smaller in a layer without a mask",
        plant=lambda site: one_weight(site, 0.9, site.unmasked),
        layers=("unmasked",),
    ),
    Fault(name="two layers swapped", plant=_swap, in_graph=True, layers=("layer", "other")),
    Fault(name="a bias left out", plant=_bias_left_out),
    Fault(name="the mask of another layer", plant=_mask_of_another),
    Fault(name="no masks", plant=_unmasked, layers=("masked",)),
    Fault(name="stale batch norm", plant=_stale_statistics),
    Fault(name="channels permuted", plant=_permuted),
    Fault(name="an extra Relu", plant=_extra_relu, in_graph=True),
    Fault(name="a residual addition left out", plant=_residual_left_out, in_graph=True, layers=()),
    Fault(name="padding on the wrong side", plant=_shifted_padding, in_graph=True),
    Fault(
        name="FP16 operands where FP32 was claimed",
        plant=_half_arithmetic,
        in_graph=True,
        layers=("masked", "unmasked"),
        precisions=("fp32",),
    ),
    Fault(name="images 2 % brighter", plant=_scaled_input, in_graph=True, layers=()),
    Fault(name="outputs clipped at half their largest value", plant=lambda site: _clipped(site, 0.5), in_graph=True),
    Fault(name="outputs clipped beyond what any sample reaches", plant=lambda site: _clipped(site, 1.01), in_graph=True),
    Fault(name="a weight's scale 5 % larger", plant=_weight_scale, precisions=("int8",)),
    Fault(
        name="an activation's scale 1 % larger",
        plant=lambda site: _activation(site, 1, lambda array: array * 1.01),
        precisions=("int8",),
    ),
    Fault(
        name="an activation's zero point off by one",
        plant=lambda site: _activation(site, 2, lambda array: array + 1),
        precisions=("int8",),
    ),
)
