"""What TensorRT 8.6, 10 and 11 do not have in common, each difference once; all else is called alike in the three.

`trt` is the imported module. What a version may lack is looked up by name, never by a version number.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from masksparse_deploy.core.config import NO_TACTIC_SOURCES, EngineOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.optional import require

__all__ = [
    "creation_flags",
    "hardware_level",
    "is_strongly_typed",
    "numpy_type",
    "optional",
    "parser_reason",
    "precision_arguments",
    "recorded_options",
    "share_shapes",
    "tactic_sources",
]

# The builder flags that a file of this precision needs where networks are not strongly typed (TensorRT 8.6).
_PRECISION_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",), "fp16+fp32": ("FP16",)}


def optional(owner: Any, name: str) -> Any | None:
    """A member that not every version has."""
    return getattr(owner, name, None)


def is_strongly_typed(trt: Any) -> bool:
    """Whether networks can be made to keep the file's types (10, 11)."""
    return optional(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not None


def creation_flags(trt: Any) -> int:
    """Strongly typed where the version can (10, 11), and an explicit batch where it must be asked for (8.6)."""
    wanted = "STRONGLY_TYPED" if is_strongly_typed(trt) else "EXPLICIT_BATCH"
    flag = optional(trt.NetworkDefinitionCreationFlag, wanted)
    return 0 if flag is None else 1 << int(flag)


def precision_arguments(trt: Any, precision: str) -> Mapping[str, bool]:
    """The precision as arguments of Polygraphy's CreateConfig: none where the network keeps the file's types.

    Raises:
        MachineError: this version cannot build such a file.
    """
    if is_strongly_typed(trt):
        return {}
    flags = _PRECISION_FLAGS.get(precision)
    if flags is None or any(optional(trt.BuilderFlag, flag) is None for flag in flags):
        raise MachineError(
            f"TensorRT {trt.__version__} cannot build a file of precision {precision}; "
            f"bake it as one of: {', '.join(_PRECISION_FLAGS)}, or use TensorRT 10 or later"
        )
    return {flag.lower(): True for flag in flags}


def hardware_level(trt: Any, name: str) -> Any | None:
    """The compatibility level called "ampere-plus" or "same-compute-capability" in the options; None for "none"."""
    if name == "none":
        return None
    enumeration = optional(trt, "HardwareCompatibilityLevel")
    return _member(trt, enumeration, name.replace("-", "_").upper(), f"hardware_compatibility {name}")


def tactic_sources(trt: Any, names: tuple[str, ...] | None) -> list[Any] | None:
    """The members of TacticSource called `names`; None for TensorRT's own choice."""
    if names is None:
        return None
    return [_member(trt, trt.TacticSource, name, f"tactic source {name!r}") for name in names]


def share_shapes(trt: Any, config: Any) -> None:
    """Let several execution contexts of an engine use its one range of shapes: 10 and 11 always do, 8.6 if it is asked to."""
    feature = optional(optional(trt, "PreviewFeature"), "PROFILE_SHARING_0806")
    if feature is not None and not config.get_preview_feature(feature):
        config.set_preview_feature(feature, True)


def numpy_type(trt: Any, data_type: Any) -> np.dtype[Any]:
    """NumPy's type for a tensor's; TensorRT's own `nptype` knows none for BF16 (10, 11), which 8.6 does not have."""
    is_bf16 = data_type == optional(trt.DataType, "BF16")
    # not every version of onnx brings ml_dtypes
    found = require("ml_dtypes", needed_for="tensors in BF16").bfloat16 if is_bf16 else trt.nptype(data_type)
    dtype: np.dtype[Any] = np.dtype(found)
    return dtype


def parser_reason(parser_error: Any) -> str:
    """What a parser's error says, with the node it is about where the version tells (10, 11)."""
    name, operator = optional(parser_error, "node_name"), optional(parser_error, "node_operator")
    place = f"{name()} [{operator()}]: " if name is not None and operator is not None else ""
    return f"{place}{parser_error.desc()}"


def recorded_options(options: EngineOptions) -> dict[str, str | int | bool]:
    """All that changed an engine, as its metadata keep it; "default" where TensorRT chose."""
    sources = options.tactic_sources
    return {
        "batch": options.batch,
        "smallest_batch": options.smallest_batch,
        "largest_batch": options.largest_batch or options.batch,
        "smallest_image": options.smallest_image or options.tuned_image or "",
        "tuned_image": options.tuned_image or "",
        "largest_image": options.largest_image or options.tuned_image or "",
        "workspace_mib": options.workspace_mib,
        "sparse_tactics": options.sparse_tactics,
        "tactic_sources": "default" if sources is None else ",".join(sources) or NO_TACTIC_SOURCES,
        "optimization_level": "default" if options.optimization_level is None else options.optimization_level,
        "refit": options.refit,
        "hardware_compatibility": options.hardware_compatibility,
        "version_compatible": options.version_compatible,
        "tf32": False,
    }


def _member(trt: Any, enumeration: Any, name: str, what: str) -> Any:
    member = optional(enumeration, name)
    if member is None:
        known = [entry for entry in dir(enumeration) if entry.isupper()]
        raise MachineError(
            f"TensorRT {trt.__version__} has no {what}; it has: {', '.join(known) or 'none'}; choose one of these, leave it "
            "out, or use another version of TensorRT"
        )
    return member
