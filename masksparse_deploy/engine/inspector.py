"""What TensorRT's engine inspector tells about each layer: a pure parser of its JSON.

The schema is the one of `ProfilingVerbosity.DETAILED`; below it the layers are bare names. All that differs between versions is
here: the list of inputs and outputs is called `Bindings` in TensorRT 8.6 and 10 and `I/O Tensors` in 11; layers made by the
graph compiler Myelin have neither `ParameterType` nor `Weights`; versions before 8.6 have no `StreamId` and no `Metadata`; with
dynamic shapes `Format/Datatype` says that it is not available. What is missing leaves a field empty.
"""

import json
from typing import Any

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.tactic_names import read_tactic

__all__ = ["count_sparse", "onnx_nodes", "parse_inspector"]

_TENSOR_KEYS = ("Bindings", "I/O Tensors")
_METADATA_SEPARATOR = "\x1e"
_METADATA_PREFIX = "[ONNX Layer: "
_NOT_TOLD = "N/A"


def parse_inspector(text: str) -> tuple[EngineLayer, ...]:
    """The layers in the engine's order, with the ONNX nodes merged into each and whether its tactic is a sparse one.

    `is_sparse` comes from the tactic's name alone. `HasSparseWeights` tells that the weights would have allowed a sparse
    tactic, not that one was chosen. It is None where no tactic is named.

    Raises:
        ArtifactError: not JSON, or not what an engine inspector writes.
    """
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ArtifactError(f"the engine inspector's text is not JSON ({error}); build the engine again") from error
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
    """Names of the ONNX nodes in a layer's metadata, as "[ONNX Layer: a]" joined by the record separator."""
    parts = metadata.split(_METADATA_SEPARATOR)
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
    weights = entry.get("Weights")
    weights = weights if isinstance(weights, dict) else {}
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
        weight_dtype=str(weights.get("Type", "")),
        weight_count=_number(weights.get("Count")),
        has_sparse_weights=None if has_sparse_weights is None else bool(has_sparse_weights),
        tactic_value=str(entry.get("TacticValue", "")),
        stream=_number(entry.get("StreamId")),
    )


def _formats(tensors: Any) -> tuple[str, ...]:
    """The format of each tensor, empty where it is not told."""
    listed = tensors if isinstance(tensors, list) else []
    found = (str(tensor.get("Format/Datatype", "")) if isinstance(tensor, dict) else "" for tensor in listed)
    return tuple("" if text.startswith(_NOT_TOLD) else text for text in found)


def _number(value: Any) -> int | None:
    return int(value) if isinstance(value, int) else None


def _verdict(tactic: str, has_sparse_weights: bool) -> tuple[bool | None, str]:
    if read_tactic(tactic).is_sparse:
        return True, "the tactic's name tells of sparse math"
    if not tactic:
        return None, "the inspector names no tactic for this layer"
    if has_sparse_weights:
        return False, "the weights allow a sparse tactic; the builder found none, or a dense one was faster"
    return False, "a dense tactic; the inspector does not report sparse weights"
