"""New weights into a deserialized TensorRT engine: from the ONNX file by the parser (10, 11), or tensor by tensor (8.6)."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.engine.source import Source
from masksparse_deploy.engine.tensorrt_log import BuilderMessages
from masksparse_deploy.engine.tensorrt_versions import optional, parser_reason
from masksparse_deploy.graph.model import Graph

__all__ = ["refit_plan"]

_SHOWN = 5


def refit_plan(
    trt: Any, logger: Any, messages: BuilderMessages, engine: Any, source: Source, changed: tuple[str, ...]
) -> bytes:
    """Put the weights of `source` into `engine`, and serialize it.

    Args:
        trt: the module.
        logger: of `messages`.
        messages: what TensorRT says meanwhile, for error messages.
        engine: built with the option refit.
        source: the same network with new weights.
        changed: names of the constants that differ from those that the engine has.

    Raises:
        UsageError: the engine was not built for new weights.
        ArtifactError: TensorRT refuses the weights, or has no place for one.
    """
    if not engine.refittable:
        raise UsageError("the engine was not built for new weights; build it again with --refit (engine.refit: true)")
    refitter = trt.Refitter(engine, logger)
    kept = _refit_by_parser(trt, logger, refitter, source.content)
    if kept is None:
        kept = _refit_by_name(trt, refitter, source.graph, changed)
    missing = refitter.get_missing_weights()
    if missing:
        raise ArtifactError(f"TensorRT {trt.__version__} needs more weights than the file has: {_few(missing)}; build it again")
    if not refitter.refit_cuda_engine():
        raise ArtifactError(f"TensorRT {trt.__version__} refuses the new weights: {messages.reasons()}; build a new engine")
    del kept  # TensorRT reads the arrays until here
    return bytes(engine.serialize())


def _refit_by_parser(trt: Any, logger: Any, refitter: Any, content: bytes) -> Any | None:
    """Let the parser that named the weights find them in the new file; None where the version has none (8.6)."""
    make = optional(trt, "OnnxParserRefitter")
    if make is None:
        return None
    parser_refitter = make(refitter, logger)
    if not parser_refitter.refit_from_bytes(content):
        reasons = "; ".join(parser_reason(parser_refitter.get_error(index)) for index in range(parser_refitter.num_errors))
        raise ArtifactError(
            f"TensorRT {trt.__version__} cannot take the new weights from the ONNX file: {reasons or 'no reason given'}; "
            "build a new engine"
        )
    return parser_refitter


def _refit_by_name(trt: Any, refitter: Any, graph: Graph, changed: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    """Set every weight, by the name that the parser took from the file."""
    known = set(refitter.get_all_weights())
    lost = [name for name in changed if name not in known]
    if lost:
        raise ArtifactError(
            f"TensorRT {trt.__version__} has no place for new values of {_few(lost)}: it joined them with others when it built "
            "the engine; build a new one, or use TensorRT 10 or later, whose parser knows how they were joined"
        )
    kept = {name: np.ascontiguousarray(array) for name, array in graph.constants.items() if name in known}
    for name, array in kept.items():
        if not refitter.set_named_weights(name, array):
            raise ArtifactError(f"TensorRT {trt.__version__} refuses the new values of {name}; build a new engine")
    return kept


def _few(names: Iterable[str]) -> str:
    listed = list(names)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest
