"""Which convolutions of a sparse file can compute rows, and what there is to know about each."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.operators import resolve_pads

__all__ = ["RowConvolution", "is_masked", "obstacle", "read_convolution"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False, kw_only=True)
class RowConvolution:
    """A convolution with what masks its positions.

    Attributes:
        node: the Conv.
        output: the tensor that others read: behind the Where if there is one.
        where: the Where that masks positions; None if all are computed.
        weight: float32 (out_channels, in_channels, kernel_h, kernel_w).
        bias: float32 (out_channels,), zeros if the Conv has none.
        constant: float32 (out_channels,), what masked positions hold.
        keep: bool (height, width), positions of the output that are computed.
        strides: height and width.
        pads: top, left, bottom, right.
        dilations: height and width.
    """

    node: ir.Node
    output: ir.Value
    where: ir.Node | None
    weight: Floats
    bias: Floats
    constant: Floats
    keep: npt.NDArray[np.bool_]
    strides: tuple[int, ...]
    pads: tuple[int, ...]
    dilations: tuple[int, ...]

    @property
    def kernel(self) -> tuple[int, ...]:
        """Height and width."""
        return self.weight.shape[2:]


def is_masked(conv: ir.Node) -> bool:
    """Whether positions of a Conv's output are masked by a Where behind it, as baking writes it."""
    return masking_where(conv) is not None


def masking_where(conv: ir.Node) -> ir.Node | None:
    """The annotated Where that alone reads the output of a Conv."""
    uses = conv.outputs[0].uses()
    if len(uses) != 1 or conv.outputs[0].is_graph_output():
        return None
    ((reader, index),) = uses
    is_where = reader.op_type == "Where" and index == 1 and keys.POSITIONS in reader.metadata_props
    return reader if is_where and all(_constant(reader.inputs[place]) is not None for place in (0, 2)) else None


def obstacle(conv: ir.Node, graph: ir.Graph) -> str:
    """Why an operator cannot compute rows, in words; "" if it can. The model must have the shapes of its tensors."""
    if conv.op_type != "Conv" or conv.domain not in ("", "ai.onnx") or conv.graph is not graph:
        return f"it is a {conv.op_type}, not a convolution of the main graph"
    weight = _constant(conv.inputs[1])
    if weight is None:
        return "its weight is computed"
    if weight.ndim != 4:
        return f"its kernel has {weight.ndim - 2} axes, not height and width"
    if weight.dtype != np.float32:
        return f"its weight is {weight.dtype}; rows are computed in float32"
    if conv.attributes.get_int("group", 1) != 1:
        return "it is a grouped convolution, whose products are too small to gain by it"
    if len(conv.inputs) > 2 and conv.inputs[2] is not None and _constant(conv.inputs[2]) is None:
        return "its bias is computed"
    for value in (conv.inputs[0], conv.outputs[0]):
        if value is None or _size(value) is None:
            return "the file does not tell the height and width of its images"
    return ""


def read_convolution(conv: ir.Node) -> RowConvolution:
    """What there is to know about a convolution without obstacle."""
    weight = _constant(conv.inputs[1])
    source = conv.inputs[0]
    assert weight is not None and source is not None, "the obstacle was asked for before"
    size, out_size = _size(source), _size(conv.outputs[0])
    assert size is not None and out_size is not None, "the obstacle was asked for before"
    stored = _constant(conv.inputs[2]) if len(conv.inputs) > 2 else None
    bias = np.zeros(len(weight), dtype=np.float32) if stored is None else stored.astype(np.float32)
    where = masking_where(conv)
    keep, constant = np.ones(out_size, dtype=np.bool_), bias
    if where is not None:
        mask, values = (_constant(where.inputs[place]) for place in (0, 2))
        assert mask is not None and values is not None, "masking_where asks for stored ones"
        keep, constant = np.broadcast_to(mask, (1, 1, *out_size))[0, 0], values.astype(np.float32).reshape(-1)
    strides, dilations = (tuple(conv.attributes.get_ints(name, (1, 1))) for name in ("strides", "dilations"))
    pads = resolve_pads(
        conv.attributes.get_string("auto_pad", "NOTSET"),
        conv.attributes.get_ints("pads", (0, 0, 0, 0)),
        size=size,
        kernel=weight.shape[2:],
        strides=strides,
        dilations=dilations,
    )
    return RowConvolution(
        node=conv,
        output=conv.outputs[0] if where is None else where.outputs[0],
        where=where,
        weight=weight.astype(np.float32, copy=False),
        bias=bias,
        constant=constant,
        keep=keep,
        strides=strides,
        pads=pads,
        dilations=dilations,
    )


def _constant(value: ir.Value | None) -> npt.NDArray[np.generic] | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def _size(value: ir.Value) -> tuple[int, int] | None:
    """Height and width of a tensor of images; None if they are not fixed."""
    if value.shape is None or len(value.shape) != 4:
        return None
    height, width = value.shape[2], value.shape[3]
    return (height, width) if isinstance(height, int) and isinstance(width, int) else None
