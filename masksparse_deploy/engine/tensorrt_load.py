"""From a plan to an engine: whether it may run here, and loading it; and beginning with TensorRT at all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from masksparse_deploy.core.artifacts.engines import DeviceFacts, EngineArtifact
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.engine.tensorrt_log import BuilderMessages

__all__ = ["begin", "check_runs_here", "load_engine"]

_AMPERE = 8


def load_engine(trt: Any, logger: Any, messages: BuilderMessages, plan: bytes, *, what: str, trusted: bool) -> Any:
    """Deserialize a plan.

    Args:
        trt: the module.
        logger: of `messages`.
        messages: what TensorRT says meanwhile, for error messages.
        plan: the bytes.
        what: what the plan is, for the message.
        trusted: let code that a version-compatible plan carries run in this process.

    Raises:
        ArtifactError: TensorRT cannot load it.
        MachineError: TensorRT does not begin to.
    """
    trt.init_libnvinfer_plugins(logger, "")
    runtime = begin(trt, trt.Runtime, logger, messages)
    runtime.engine_host_code_allowed = trusted
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(
            f"TensorRT {trt.__version__} cannot load {what}: {messages.reasons()}; run 'masksparse build' again on this machine"
        )
    return engine


def begin(trt: Any, make: Callable[[Any], Any], logger: Any, messages: BuilderMessages) -> Any:
    """A Builder or Runtime; raises MachineError where CUDA or one of TensorRT's libraries does not work.

    The bindings then tell of no more than a null pointer, as a TypeError; the reason is in the log.
    """
    try:
        return make(logger)
    except TypeError as error:
        raise MachineError(
            f"TensorRT {trt.__version__} does not work on this machine: {messages.reasons()}; see 'masksparse doctor', and "
            "whether other processes fill the GPU's memory"
        ) from error


def check_runs_here(artifact: EngineArtifact, device: DeviceFacts, versions: Mapping[str, str], path: Path) -> None:
    """Raise an ArtifactError unless the plan that `path` describes may run on `device` with this version of TensorRT.

    A plan belongs to one GPU and one version, unless it was built to be compatible with more.
    """
    built, here = artifact.versions.get("tensorrt", ""), versions.get("tensorrt", "")
    same_version = built == here or (artifact.options.get("version_compatible") is True and _numbers(built) <= _numbers(here))
    if same_version and _fits_device(artifact, device):
        return
    raise ArtifactError(
        f"{path} was built for {artifact.device.name} with TensorRT {built}; this is {device.name} with TensorRT {here}: "
        "run 'masksparse build' again on this machine"
    )


def _fits_device(artifact: EngineArtifact, device: DeviceFacts) -> bool:
    built, here = (_numbers(facts.details.get("compute_capability", "")) for facts in (artifact.device, device))
    level = artifact.options.get("hardware_compatibility", "none")
    if level == "ampere-plus":
        return here[:1] >= (_AMPERE,)
    if level == "same-compute-capability":
        return built == here
    return artifact.device.name == device.name


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split(".") if part.isdigit())
