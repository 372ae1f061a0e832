"""A layer as a small network of its own, so that its forms can be timed.

Inside a network ONNX Runtime keeps activations in a blocked layout; a Gather needs them in the plain one, and the reorders
around it are part of its price. So the layer stands between a cheap convolution and a pooling, which take part in that layout;
timed alone, the dense form would pay for two reorders that it does not need in a network (docs/rewrite.md has the figures).
"""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from masksparse_deploy.graph import annotations as keys
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.rewrite.sites import Site

__all__ = ["LAYER", "input_size", "surrounded"]

# Name of the layer's node in the small network.
LAYER = "layer"
_INPUT_CHANNELS = 4
_SEED = 0


def input_size(graph: Graph, site: Site) -> tuple[int, int, int] | None:
    """Channels, height and width of what a layer reads; None where the file does not fix them."""
    shape = graph.shapes.get(site.layer.node.inputs[0], ())
    lengths = [length for length in shape[1:] if length is not None]
    return (lengths[0], lengths[1], lengths[2]) if len(shape) == 4 and len(lengths) == 3 else None


def surrounded(graph: Graph, site: Site, size: tuple[int, int, int]) -> onnx.ModelProto:
    """A 1x1 convolution to the layer's channels and Relu, the layer with its mask of positions, Relu and a global pooling.

    Args:
        graph: the file.
        site: the layer, which keeps its annotations.
        size: channels, height and width of what it reads.

    Returns:
        a model from "x" (batch, 4, height, width) to "y" (batch, out_channels, 1, 1) in the weights' type.
    """
    channels, height, width = size
    layer, dtype = site.layer, site.layer.weight.dtype
    random = np.random.default_rng(_SEED)
    first = (random.standard_normal((channels, _INPUT_CHANNELS, 1, 1)) / 2).astype(dtype)
    constants: dict[str, npt.NDArray[Any]] = {"first.weight": first, f"{LAYER}.weight": layer.weight}
    inputs = ["read", f"{LAYER}.weight"]
    if layer.bias is not None:
        constants[f"{LAYER}.bias"] = layer.bias
        inputs.append(f"{LAYER}.bias")
    conv = helper.make_node("Conv", inputs, ["computed"], name=LAYER, **layer.node.attributes)
    conv.metadata_props.extend(_properties({key: layer.node.metadata.get(key) for key in (keys.PATTERN,)}))
    nodes = [
        helper.make_node("Conv", ["x", "first.weight"], ["first.out"], name="first"),
        helper.make_node("Relu", ["first.out"], ["read"], name="first.relu"),
        conv,
    ]
    if site.positions is not None:
        constants |= {
            "keep": site.positions.keep[None, None],
            "constant": site.positions.constant.reshape(1, -1, 1, 1),
        }
        where = helper.make_node("Where", ["keep", "computed", "constant"], ["masked"], name="where")
        # by the name here, so that layers alike are the same model, whose times are taken once
        where.metadata_props.extend(_properties({**site.positions.where.metadata, keys.POSITIONS_LAYER: LAYER}))
        nodes.append(where)
    nodes += [
        helper.make_node("Relu", [nodes[-1].output[0]], ["active"], name="relu"),
        helper.make_node("GlobalAveragePool", ["active"], ["y"], name="pool"),
    ]
    element = helper.np_dtype_to_tensor_dtype(dtype)
    body = helper.make_graph(
        nodes,
        "surrounded",
        [helper.make_tensor_value_info("x", element, ["batch", _INPUT_CHANNELS, height, width])],
        [helper.make_tensor_value_info("y", element, ["batch", len(layer.weight), 1, 1])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()],
    )
    opsets = [helper.make_opsetid("", graph.opsets[""])]
    model = helper.make_model(body, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    return onnx.shape_inference.infer_shapes(model)


def _properties(metadata: Any) -> list[onnx.StringStringEntryProto]:
    return [onnx.StringStringEntryProto(key=key, value=value) for key, value in metadata.items() if value is not None]
