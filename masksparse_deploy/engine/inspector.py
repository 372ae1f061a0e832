"""What TensorRT's engine inspector tells about each layer: a pure parser of its JSON.

The schema is the one of `ProfilingVerbosity.DETAILED`; below it the layers are bare names. All that differs between versions is
here. The list of inputs and outputs is called `Bindings` in TensorRT 8.6 and 10 and `I/O Tensors` in 11. A tensor has one
`Format/Datatype`, or, as in TensorRT-RTX, `Format` and `Datatype`; with dynamic shapes it may say that it is not available.
Weights are `Weights`, or, in layers made by the graph compiler Myelin, the largest of the `Constants`; such layers have no
`ParameterType`, and may name a placeholder as tactic. ONNX nodes are joined by a record separator, or by a unit separator;
from 8.6 "illegal characters" were reported (NVIDIA/TensorRT, issue 2779), so that it may stand unescaped. Versions before 8.6
have no `StreamId` and no `Metadata`. What is missing leaves a field empty.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.tactic_names import read_tactic

__all__ = ["count_sparse", "onnx_nodes", "parse_inspector"]

_TENSOR_KEYS = ("Bindings", "I/O Tensors")
_METADATA_SEPARATOR = re.compile("[\x1e\x1f]")
_METADATA_PREFIX = "[ONNX Layer: "
_NOT_TOLD = "N/A"
# What Myelin writes where a kernel is chosen later.
_PLACEHOLDER = "STUB"
# Characters on either side of what cannot be read.
_SHOWN = 40


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the engine's order, with the ONNX nodes merged into each and whether its tactic is a sparse one.

    `is_sparse` comes from the tactic's name alone. `HasSparseWeights` tells that the weights would have allowed a sparse
    tactic, not that one was chosen. It is None where no tactic is named.

    Raises:
        ArtifactError: not JSON, or not what an engine inspector writes.
    """
    try:
        content = json.loads(text, strict=False)
    except json.JSONDecodeError as error:
        around = text[max(error.pos - _SHOWN, 0) : error.pos + _SHOWN]
        raise ArtifactError(
            f"the engine inspector's text is not JSON ({error}, in {around!r}); build the engine again"
        ) from error
    layers = content.get("Layers") if isinstance(content, dict) else None
    if not isinstance(layers, list) or not any(key in content for key in _TENSOR_KEYS):
        keys = ", ".join(content) if isinstance(content, dict) else type(content).__name__
        raise ArtifactError(
            f"the engine inspector's JSON needs 'Layers' and one of {', '.join(map(repr, _TENSOR_KEYS))}; it has: {keys}; "
            "this version of TensorRT is not supported yet"
        )
    return tuple(_layer(entry) for entry in layers)


def count_sparse(layers: tuple[EngineLayer, ...]) -> str:
    """How many layers run sparse tactics, in words."""
    sparse = [layer.name for layer in layers if layer.is_sparse]
    unknown = sum(layer.is_sparse is None for layer in layers)
    doubt = f"; {unknown} layers name no tactic" if unknown else ""
    if not sparse:
        return f"no sparse tactic in any of {len(layers)} layers{doubt}"
    return f"sparse tactics in {len(sparse)} of {len(layers)} layers{doubt}"


def onnx_nodes(metadata: str) -> tuple[str, ...]:
    """Names of the ONNX nodes in a layer's metadata, as "[ONNX Layer: a]" joined by a separator."""
    parts = _METADATA_SEPARATOR.split(metadata)
    named = (part.removeprefix(_METADATA_PREFIX).removesuffix("]") for part in parts if part.startswith(_METADATA_PREFIX))
    return tuple(dict.fromkeys(name for name in named if name))


def _layer(entry: Any) -> EngineLayer:
    if isinstance(entry, str):
        reason = "only its name is known: the engine was built without detailed profiling verbosity"
        return EngineLayer(name=entry, onnx_nodes=(), tactic="", is_sparse=None, reason=reason)
    if not isinstance(entry, dict) or not isinstance(entry.get("Name"), str):
        raise ArtifactError(
            f"the engine inspector's JSON has a layer without a name: {str(entry)[:80]}; build the engine again"
        )
    tactic = str(entry.get("TacticName", ""))
    has_sparse_weights = _number(entry.get("HasSparseWeights"))
    is_sparse, reason = _verdict(tactic, bool(has_sparse_weights))
    weight_dtype, weight_count = _weights(entry)
    return EngineLayer(
        name=entry["Name"],
        onnx_nodes=onnx_nodes(str(entry.get("Metadata", ""))),
        tactic=tactic,
        is_sparse=is_sparse,
        reason=reason,
        layer_type=str(entry.get("LayerType", "")),
        parameter_type=str(entry.get("ParameterType", "")),
        inputs=_formats(entry.get("Inputs")),
        outputs=_formats(entry.get("Outputs")),
        weight_dtype=weight_dtype,
        weight_count=weight_count,
        has_sparse_weights=None if has_sparse_weights is None else bool(has_sparse_weights),
        tactic_value=str(entry.get("TacticValue", "")),
        stream=_number(entry.get("StreamId")),
    )


def _weights(entry: Mapping[str, Any]) -> tuple[str, int | None]:
    """Type and number of the layer's weights."""
    weights = entry.get("Weights")
    if isinstance(weights, dict):
        return str(weights.get("Type", "")), _number(weights.get("Count"))
    found = [constant for constant in _tensors(entry.get("Constants")) if isinstance(constant.get("Dimensions"), list)]
    largest = max(found, key=lambda constant: math.prod(constant["Dimensions"]), default=None)
    return ("", None) if largest is None else (str(largest.get("Datatype", "")), math.prod(largest["Dimensions"]))


def _formats(tensors: Any) -> tuple[str, ...]:
    """Type and format of each tensor, empty where it is not told."""
    return tuple(_format(tensor) for tensor in _tensors(tensors))


def _format(tensor: Mapping[str, Any]) -> str:
    apart = ", ".join(str(tensor[key]) for key in ("Datatype", "Format") if key in tensor)
    text = str(tensor.get("Format/Datatype", apart))
    return "" if text.startswith(_NOT_TOLD) else text


def _tensors(tensors: Any) -> tuple[Mapping[str, Any], ...]:
    return tuple(tensor for tensor in tensors if isinstance(tensor, dict)) if isinstance(tensors, list) else ()


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int) else None


def _verdict(tactic: str, has_sparse_weights: bool) -> tuple[bool | None, str]:
    if read_tactic(tactic).is_sparse:
        return True, "the tactic's name tells of sparse math"
    if not tactic:
        return None, "the inspector names no tactic for this layer"
    if _PLACEHOLDER in tactic:
        return None, "the inspector names a placeholder, not the kernel"
    if has_sparse_weights:
        return False, "the weights allow a sparse tactic; the builder found none, or a dense one was faster"
    return False, "a dense tactic; the inspector does not report sparse weights"
