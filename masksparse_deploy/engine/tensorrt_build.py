"""From an ONNX file to a serialized TensorRT engine, on TensorRT 8.6, 10 and 11.

`trt` is the imported module. Every member used here exists in all three versions, except those reached through
`_optional_flag`, which stand for what came or went in between.
"""

from typing import Any

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine.source import Source

__all__ = ["build_plan", "inspect_engine"]

# The builder flags that a file of this precision needs where networks are not strongly typed (TensorRT 8.6).
_PRECISION_FLAGS = {"fp32": (), "fp16": ("FP16",), "int8": ("INT8",), "fp16+fp32": ("FP16",)}


def build_plan(trt: Any, logger: Any, source: Source, options: EngineOptions) -> bytes:
    """The serialized engine, with sparse tactics allowed and full profiling verbosity.

    Raises:
        ArtifactError: TensorRT refuses the file.
        MachineError: this version of TensorRT cannot build the file's precision.
        UsageError: an axis other than the batch has no fixed length, or a tensor to expose is not in the parsed network.
    """
    builder = trt.Builder(logger)
    network = builder.create_network(_creation_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.content):
        reasons = "; ".join(parser.get_error(index).desc() for index in range(parser.num_errors))
        raise ArtifactError(f"TensorRT {trt.__version__} does not accept the ONNX file: {reasons or 'no reason given'}")
    _mark_exposed(network, source.exposed)
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mib << 20)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    # FP32 is to mean FP32: TF32 keeps 10 bits of the mantissa
    config.clear_flag(trt.BuilderFlag.TF32)
    if not _is_strongly_typed(trt):
        for flag in _precision_flags(trt, source.precision):
            config.set_flag(flag)
    _add_shape_profile(builder, config, source, options.batch)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ArtifactError(f"TensorRT {trt.__version__} built no engine from the ONNX file; its messages are on stderr")
    return bytes(plan)


def inspect_engine(trt: Any, engine: Any) -> str:
    """The engine inspector's JSON for a deserialized engine."""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _optional_flag(enumeration: Any, name: str) -> Any | None:
    """A flag that not every version has."""
    return getattr(enumeration, name, None)


def _is_strongly_typed(trt: Any) -> bool:
    return _optional_flag(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED") is not None


def _creation_flags(trt: Any) -> int:
    """Strongly typed where the version can (10, 11), and an explicit batch where it must be asked for (8.6)."""
    wanted = "STRONGLY_TYPED" if _is_strongly_typed(trt) else "EXPLICIT_BATCH"
    flag = _optional_flag(trt.NetworkDefinitionCreationFlag, wanted)
    return 0 if flag is None else 1 << int(flag)


def _precision_flags(trt: Any, precision: str) -> tuple[Any, ...]:
    names = _PRECISION_FLAGS.get(precision)
    flags = [_optional_flag(trt.BuilderFlag, name) for name in names or ()]
    if names is None or None in flags:
        raise MachineError(
            f"TensorRT {trt.__version__} cannot build a file of precision {precision}; "
            f"bake it as one of: {', '.join(_PRECISION_FLAGS)}, or use TensorRT 10 or later"
        )
    return tuple(flags)


def _mark_exposed(network: Any, exposed: tuple[str, ...]) -> None:
    wanted = set(exposed)
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        for output in range(layer.num_outputs):
            tensor = layer.get_output(output)
            if tensor.name in wanted:
                wanted.discard(tensor.name)
                network.mark_output(tensor)
    if wanted:
        raise UsageError(f"TensorRT's parser removed the tensors to expose: {', '.join(sorted(wanted))}; expose others")


def _add_shape_profile(builder: Any, config: Any, source: Source, batch: int) -> None:
    """A dynamic batch gets the range 1 to `batch`, tuned for `batch`; a fixed one needs no shape profile."""
    count, *image = source.input_shape
    if None in image:
        raise UsageError(f"input {source.input_name} has shape {source.input_shape}; only the batch may be dynamic")
    if count is not None:
        return
    shape_profile = builder.create_optimization_profile()
    shape_profile.set_shape(source.input_name, (1, *image), (batch, *image), (batch, *image))
    config.add_optimization_profile(shape_profile)
