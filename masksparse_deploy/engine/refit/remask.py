"""New weights under the zeros of the file that an engine was built from."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from masksparse_deploy.core.artifacts.refit import RemaskedLayer
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.graph.annotations import (
    DENSE_REASON,
    MASK_SET_SHA256,
    METHOD,
    PATTERN,
    PREFIX,
    ROLE,
    SCHEMA_VERSION,
)
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["masked_layers", "remask"]

_HARDWARE_PATTERN = NMPattern(n=2, m=4)


def masked_layers(graph: Graph) -> tuple[WeightedLayer, ...]:
    """The layers whose zeros are a mask: those that the file says are sparse, or, if it says nothing, those that are 2:4."""
    layers = weighted_layers(graph)
    claimed = tuple(layer for layer in layers if PATTERN in layer.node.metadata or PATTERN in layer.stored_metadata)
    return claimed or tuple(layer for layer in layers if _is_two_of_four(layer))


def remask(old: Graph, new_path: Path) -> tuple[bytes, tuple[RemaskedLayer, ...]]:
    """The file at `new_path`, all weights inside, with zeros wherever `old`'s masked layers have them; and what was zeroed.

    `new_path` must be the same graph (see `require_same_graph`).

    Raises:
        UsageError: a masked weight of the new file does not lie in an initializer.
    """
    model = onnx.load(new_path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    claims = {key: old.metadata[key] for key in (SCHEMA_VERSION, ROLE, METHOD, MASK_SET_SHA256) if key in old.metadata}
    _annotate(model, claims)
    report = []
    for layer in masked_layers(old):
        tensor = tensors.get(layer.stored_name)
        if tensor is None:
            raise UsageError(
                f"the masked weight {layer.stored_name} of {layer.node.name} is no initializer of {new_path}; export it again"
            )
        zero = layer.weight_as_stored == 0
        weight = numpy_helper.to_array(tensor).copy()
        # of a quantized weight the zeros are stored as the zero point
        differing = zero & (weight != layer.stored)
        weight[zero] = layer.stored[zero]
        tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
        _annotate(tensor, layer.stored_metadata)
        _annotate(nodes[layer.node.name], layer.node.metadata)
        count = int(np.count_nonzero(differing))
        report.append(RemaskedLayer(node=layer.node.name, zeroed_count=count, weight_count=weight.size))
    return model.SerializeToString(deterministic=True), tuple(report)


def _annotate(proto: Any, metadata: Mapping[str, str]) -> None:
    """Say of a model, node or tensor what the old file said of it: that its zeros are a mask is true again."""
    kept = {entry.key: entry.value for entry in proto.metadata_props if entry.key != DENSE_REASON}
    ours = {key: value for key, value in metadata.items() if key.startswith(PREFIX)}
    del proto.metadata_props[:]
    for key, value in sorted((kept | ours).items()):
        proto.metadata_props.add(key=key, value=value)


def _is_two_of_four(layer: WeightedLayer) -> bool:
    if layer.weight.shape[layer.group_axis] % _HARDWARE_PATTERN.m:
        return False
    return _HARDWARE_PATTERN.count_violations(layer.weight != 0, group_axis=layer.group_axis) == 0
