"""The builder's configuration from our options, by Polygraphy's CreateConfig, which knows all three versions."""

from typing import Any

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.optional import require
from masksparse_deploy.engine.shape_profile import ShapeRange
from masksparse_deploy.engine.source import Source
from masksparse_deploy.engine.tensorrt_versions import hardware_level, precision_arguments, share_shapes, tactic_sources

__all__ = ["create_config"]

_PURPOSE = "configuring TensorRT's builder"


def create_config(
    trt: Any,
    builder: Any,
    network: Any,
    source: Source,
    options: EngineOptions,
    *,
    shapes: ShapeRange | None,
    monitor: Any | None,
) -> Any:
    """An IBuilderConfig with full profiling verbosity, and sparse tactics where `options` allow them.

    Raises:
        MachineError: this version of TensorRT lacks something that was asked for, or cannot build the file's precision.
    """
    polygraphy = require("polygraphy.backend.trt", needed_for=_PURPOSE)
    exception = require("polygraphy.exception", needed_for=_PURPOSE).PolygraphyException
    profiles = [] if shapes is None else [_profile(polygraphy, source.input_name, shapes)]
    arguments = {
        "profiles": profiles,
        "sparse_weights": options.sparse_tactics,
        "tactic_sources": tactic_sources(trt, options.tactic_sources),
        "memory_pool_limits": {trt.MemoryPoolType.WORKSPACE: options.workspace_mib << 20},
        "profiling_verbosity": trt.ProfilingVerbosity.DETAILED,
        "refittable": options.refit,
        "builder_optimization_level": options.optimization_level,
        "hardware_compatibility_level": hardware_level(trt, options.hardware_compatibility),
        "version_compatible": options.version_compatible,
        "progress_monitor": monitor,
        # FP32 is to mean FP32: TF32 keeps 10 bits of the mantissa
        "tf32": False,
        **precision_arguments(trt, source.precision),
    }
    logger = require("polygraphy.logger", needed_for=_PURPOSE).G_LOGGER
    try:
        with logger.verbosity(logger.CRITICAL + 1):  # it would print the options, and what is raised here anyway
            config = polygraphy.create_config(builder, network, **arguments)
    except exception as error:
        raise MachineError(
            f"TensorRT {trt.__version__} cannot be configured as asked: {error}; change the options of the engine, or use "
            "another version of TensorRT"
        ) from error
    # not Polygraphy's preview_features: it switches all others off
    share_shapes(trt, config)
    return config


def _profile(polygraphy: Any, input_name: str, shapes: ShapeRange) -> Any:
    return polygraphy.Profile().add(input_name, min=shapes.smallest, opt=shapes.tuned, max=shapes.largest)
