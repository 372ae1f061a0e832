"""Masks of positions drawn at random, put into ONNX models as the bake stage does, or with other constants."""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from masksparse_deploy.graph.annotations import POSITIONS

__all__ = ["insert_where", "random_keeps", "with_random_positions"]

Keep = npt.NDArray[np.bool_]


def with_random_positions(
    model: onnx.ModelProto, seed: int, *, rate: float = 0.3, constant: float = 0.0, only: Collection[str] | None = None
) -> onnx.ModelProto:
    """The model with a mask behind every 2-D convolution (or those named), constants that are `constant` off the bias."""
    generator = np.random.default_rng(seed)
    for node, keep in random_keeps(model, generator, rate).items():
        if only is None or node in only:
            model = insert_where(model, node, keep, offset=constant)
    return model


def random_keeps(model: onnx.ModelProto, generator: np.random.Generator, rate: float) -> Mapping[str, Keep]:
    """By name of the convolution, masks that drop each position with the probability `rate`."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    sizes = {
        value.name: tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim[2:])
        for value in (*inferred.value_info, *inferred.output)
    }
    return {node.name: generator.random(sizes[node.output[0]]) >= rate for node in model.graph.node if node.op_type == "Conv"}


def insert_where(model: onnx.ModelProto, node_name: str, keep: Keep, *, offset: float = 0.0) -> onnx.ModelProto:
    """A copy with Where(keep, output, constant) behind a convolution; the constant is its bias plus `offset`."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    index, conv = next((place, node) for place, node in enumerate(copy.graph.node) if node.name == node_name)
    arrays: dict[str, Any] = {tensor.name: numpy_helper.to_array(tensor) for tensor in copy.graph.initializer}
    weight = arrays[conv.input[1]]
    bias = arrays[conv.input[2]] if len(conv.input) > 2 else np.zeros(len(weight), weight.dtype)
    output = conv.output[0]
    conv.output[0] = f"{output}.computed"
    where = helper.make_node("Where", [f"{output}.keep", f"{output}.computed", f"{output}.constant"], [output])
    where.name = f"{node_name}.positions"
    entry = where.metadata_props.add()
    entry.key, entry.value = POSITIONS, "digest"
    copy.graph.node.insert(index + 1, where)
    constant = (bias + bias.dtype.type(offset)).reshape(1, -1, 1, 1)
    for name, array in (("keep", keep[None, None]), ("constant", constant)):
        copy.graph.initializer.append(numpy_helper.from_array(array, f"{output}.{name}"))
    del copy.graph.value_info[:]
    return copy
