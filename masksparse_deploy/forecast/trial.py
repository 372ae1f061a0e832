"""The network itself with half of its weights cut, for a trial before any training: times hardly depend on what weights are."""

import numpy as np
import onnx
from onnx import numpy_helper

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.forecast.kinds import Census

__all__ = ["cut_weights"]

_PATTERN = NMPattern(n=2, m=4)


def cut_weights(model: onnx.ModelProto, census: Census) -> tuple[onnx.ModelProto, tuple[str, ...]]:
    """A copy of the model whose eligible layers keep the two largest of every four weights along the input channels.

    Args:
        model: with all weights inside.
        census: of its file; zero stays zero behind the operators that its layers' weights pass through.

    Returns:
        The copy, and the names of the layers that could not be cut, as a Reshape takes their input channels apart.
    """
    cut = onnx.ModelProto()
    cut.CopyFrom(model)
    tensors = {tensor.name: tensor for tensor in cut.graph.initializer}
    left = []
    for layer in (layer for layers in census.kinds.values() for layer in layers):
        tensor, axis = tensors.get(layer.stored_name), layer.stored_group_axis
        if tensor is None or axis is None:
            left.append(layer.node.name)
            continue
        # What is stored may be scaled for each channel on its way: the largest weights are those that the operator reads.
        keep = _PATTERN.keep_largest(np.abs(layer.weight_as_stored), group_axis=axis)
        tensor.CopyFrom(numpy_helper.from_array(np.where(keep, layer.stored, layer.stored.dtype.type(0)), tensor.name))
    return cut, tuple(left)
