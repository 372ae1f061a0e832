"""From an ONNX file to a serialized TensorRT engine, on TensorRT 8.6, 10 and 11.

`trt` is the imported module. Every member used here exists in all three versions; what came or went in between is in
tensorrt_versions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, OutputError, UsageError
from masksparse_deploy.core.files import sha256_bytes
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.shape_profile import shape_range
from masksparse_deploy.engine.source import Source
from masksparse_deploy.engine.tensorrt_config import create_config
from masksparse_deploy.engine.tensorrt_load import begin
from masksparse_deploy.engine.tensorrt_log import BuilderMessages
from masksparse_deploy.engine.tensorrt_progress import make_monitor
from masksparse_deploy.engine.tensorrt_versions import creation_flags, parser_reason
from masksparse_deploy.engine.timing_cache import TimingCache

__all__ = ["BuiltPlan", "build_plan", "inspect_engine"]

_NO_CACHE = "timing cache"


@dataclass(frozen=True, kw_only=True)
class BuiltPlan:
    """A serialized engine.

    Attributes:
        plan: its bytes.
        timing_cache_sha256: digest of the kernel times that the build began with; "" if it began with none.
        findings: what the user should know.
    """

    plan: bytes
    timing_cache_sha256: str
    findings: tuple[str, ...]


def build_plan(
    trt: Any,
    logger: Any,
    messages: BuilderMessages,
    source: Source,
    options: EngineOptions,
    *,
    name: str,
    cache: TimingCache | None = None,
    progress: Progress = silent,
) -> BuiltPlan:
    """Build with sparse tactics where `options` allow them, and full profiling verbosity.

    Args:
        trt: the module.
        logger: of `messages`.
        messages: what TensorRT says meanwhile, for error messages.
        source: the model.
        options: what changes the engine.
        name: of the engine, for `progress`.
        cache: times of kernels from earlier builds, and for later ones; None to time all of them here.
        progress: told of TensorRT's own phases where the version has them.

    Raises:
        ArtifactError: TensorRT refuses the file.
        MachineError: TensorRT does not work here, or this version cannot build the file's precision, or lacks what an option
            asks for.
        UsageError: the options' shapes do not fit the file, it has an operator that TensorRT would compute wrong, or a tensor
            to expose is not in the parsed network.
    """
    shapes = shape_range(source.input_shape, options, input_name=source.input_name)
    _check_operators(source)
    # Polygraphy's own loaders keep the parser's reasons and the builder's log to themselves, hence the two calls here
    builder = begin(trt, trt.Builder, logger, messages)
    network = builder.create_network(creation_flags(trt))
    parser = _parse(trt, network, logger, source)
    _mark_exposed(network, source.exposed)
    monitor = make_monitor(trt, name, progress)
    config = create_config(trt, builder, network, source, options, shapes=shapes, monitor=monitor)
    content, findings = b"", []
    if cache is not None:
        content, warning = cache.read()
        refusal = _load_times(config, content, cache, messages)
        findings += [warning, refusal]
        content = b"" if refusal else content
    plan = builder.build_serialized_network(network, config)
    del parser  # owns the weights that the network reads until then
    if monitor is not None and monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise ArtifactError(f"TensorRT {trt.__version__} built no engine from the ONNX file: {messages.reasons()}")
    if cache is not None:
        findings.append(_kept_times(cache, _merger(config)))
    return BuiltPlan(
        plan=bytes(plan),
        timing_cache_sha256=sha256_bytes(content) if content else "",
        findings=tuple(filter(None, findings)),
    )


def inspect_engine(trt: Any, engine: Any) -> str:
    """The engine inspector's JSON for a deserialized engine."""
    inspector = engine.create_engine_inspector()
    return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _check_operators(source: Source) -> None:
    """TensorRT's parser leaves the reduction of ScatterND out without saying so (onnx-tensorrt, issue 957)."""
    adding = [
        node.name
        for node in source.graph.nodes
        if node.op == "ScatterND" and node.attributes.get("reduction", "none") != "none"
    ]
    if adding:
        raise UsageError(
            f"TensorRT would compute {len(adding)} ScatterND with a reduction ({adding[0]}) wrong, without saying so; if the "
            "file was rewritten for ONNX Runtime, run 'masksparse rewrite --backend tensorrt' on the sparse file, or build that"
        )


def _parse(trt: Any, network: Any, logger: Any, source: Source) -> Any:
    trt.init_libnvinfer_plugins(logger, "")  # TensorRT 8.6 has some operators as plugins only
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(source.content):
        reasons = "; ".join(parser_reason(parser.get_error(index)) for index in range(parser.num_errors))
        raise ArtifactError(f"TensorRT {trt.__version__} does not accept the ONNX file: {reasons or 'no reason given'}")
    return parser


def _mark_exposed(network: Any, exposed: tuple[str, ...]) -> None:
    """Polygraphy's mark_outputs would take the model's own outputs away."""
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


def _load_times(config: Any, content: bytes, cache: TimingCache, messages: BuilderMessages) -> str:
    """Give the builder the times it may start from; a sentence if TensorRT refuses them."""
    told_before = len(messages.warnings)
    timing_cache = config.create_timing_cache(content)
    accepted = timing_cache is not None and config.set_timing_cache(timing_cache, ignore_mismatch=False)
    refusals = [line for line in messages.warnings[told_before:] if _NO_CACHE in line.lower()]
    if not content or (accepted and not refusals):
        return ""
    return cache.set_aside(f"is not accepted by TensorRT ({refusals[0] if refusals else 'no reason given'})")


def _kept_times(cache: TimingCache, merge: Callable[[bytes], bytes]) -> str:
    """Keep the builder's times; what went wrong is told, as the engine that took minutes is worth more than its times."""
    try:
        return cache.update(merge)
    except OutputError as error:
        return f"the times of kernels were not kept for later builds: {error}"


def _merger(config: Any) -> Callable[[bytes], bytes]:
    """Joins the builder's times with those that are in the file by now."""

    def merge(content: bytes) -> bytes:
        timing_cache = config.get_timing_cache()
        if content:
            timing_cache.combine(config.create_timing_cache(content), ignore_mismatch=False)
        return bytes(timing_cache.serialize())

    return merge
