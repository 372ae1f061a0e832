"""What TensorRT's engine inspector tells about each layer: a pure parser of its JSON.

The schema is the one that TensorRT documents for `ProfilingVerbosity.DETAILED`. The list of inputs and outputs is called
`Bindings` in TensorRT 8.6 and 10 and `I/O Tensors` in 11; `Layers` is the same in all of them. Below DETAILED the layers
are bare names.
"""

import json
import re
from collections.abc import Mapping
from typing import Any

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError

__all__ = ["count_sparse", "onnx_nodes", "parse_inspector"]

_SPARSE_TACTIC = re.compile(r"spars|sptensor|spmma", re.IGNORECASE)
_TENSOR_KEYS = ("Bindings", "I/O Tensors")
_METADATA_SEPARATOR = "\x1e"
_METADATA_PREFIX = "[ONNX Layer: "


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
    is_sparse, reason = _verdict(tactic, entry)
    return EngineLayer(
        name=entry["Name"],
        onnx_nodes=onnx_nodes(str(entry.get("Metadata", ""))),
        tactic=tactic,
        is_sparse=is_sparse,
        reason=reason,
    )


def _verdict(tactic: str, entry: Mapping[str, Any]) -> tuple[bool | None, str]:
    if _SPARSE_TACTIC.search(tactic):
        return True, "the tactic's name tells of sparse math"
    has_sparse_weights = bool(entry.get("HasSparseWeights", 0))
    if not tactic:
        return None, "the inspector names no tactic for this layer"
    if has_sparse_weights:
        return False, "the weights allow a sparse tactic; the builder found none, or a dense one was faster"
    return False, "a dense tactic; the inspector does not report sparse weights"
