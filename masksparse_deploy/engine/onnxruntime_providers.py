"""ONNX Runtime's execution providers: what each needs from the machine, and how it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.shape_profile import ShapeRange

__all__ = [
    "CPU",
    "CUDA",
    "TENSORRT",
    "Provider",
    "compiling_options",
    "missing_for_gpu",
    "plain_options",
    "recorded_options",
]

_GPU_PACKAGE = "onnxruntime-gpu"
_INSTALL = "pip uninstall onnxruntime, then pip install onnxruntime-gpu; the two must not be installed together"
# The precisions that TensorRT must be allowed besides single precision, which it may then choose where it finds it faster.
_PRECISION_OPTIONS = {"fp16": ("trt_fp16_enable",), "fp16+fp32": ("trt_fp16_enable",), "int8": ("trt_int8_enable",)}


# FP32 is to mean FP32: TF32 keeps 10 bits of the mantissa
_CUDA_OPTIONS = ("CUDAExecutionProvider", {"use_tf32": "0"})


@dataclass(frozen=True, kw_only=True)
class Provider:
    """One of ONNX Runtime's providers.

    Attributes:
        backend: our name for it.
        name: ONNX Runtime's.
        libraries: what it needs besides ONNX Runtime, in words; "" on the CPU.
        kernels: what is to be said of sparse kernels.
        compiles: whether it compiles the network itself, so that it is given the file as it is.
    """

    backend: str
    name: str
    libraries: str
    kernels: str
    compiles: bool

    @property
    def device(self) -> str:
        """Where its tensors lie, as ONNX Runtime calls it."""
        return "cuda" if self.libraries else "cpu"


CPU = Provider(
    backend="onnxruntime",
    name="CPUExecutionProvider",
    libraries="",
    kernels="this runtime has no 2:4 kernels: it multiplies the zeros too",
    compiles=False,
)
CUDA = Provider(
    backend="onnxruntime-cuda",
    name="CUDAExecutionProvider",
    libraries="CUDA and cuDNN",
    kernels="this provider has no 2:4 kernels: it multiplies the zeros too",
    compiles=False,
)
TENSORRT = Provider(
    backend="onnxruntime-tensorrt",
    name="TensorrtExecutionProvider",
    libraries="CUDA, cuDNN and TensorRT",
    kernels="this provider does not tell which tactics TensorRT chose; the backend tensorrt does",
    compiles=True,
)


def missing_for_gpu(provider: Provider, answer: DriverAnswer, available: Callable[[], list[str]]) -> list[str]:
    """What the machine lacks for a provider that runs on a GPU; empty if nothing.

    `available` imports ONNX Runtime and gives the providers it was built with: it is asked last.
    """
    if answer.device is None:
        return [answer.reason]
    if not installed_versions(_GPU_PACKAGE):
        return [f"not installed: {_GPU_PACKAGE} ({_INSTALL})"]
    if provider.name not in (known := available()):
        return [f"this {_GPU_PACKAGE} was built without {provider.name}; it has {', '.join(known)}"]
    return []


def plain_options(provider: Provider) -> list[tuple[str, dict[str, str]]]:
    """The providers of a session that compiles nothing, in order of preference, with their options."""
    cpu: list[tuple[str, dict[str, str]]] = [(CPU.name, {})]
    return cpu if provider is CPU else [_CUDA_OPTIONS, *cpu]


def compiling_options(
    recorded: Mapping[str, Any], *, precision: str, shapes: ShapeRange | None, input_name: str, folder: Path
) -> list[tuple[str, dict[str, str]]]:
    """Likewise for the TensorRT provider, with the options that the metadata keep; engines and kernel times go to `folder`."""
    options = {
        "trt_max_workspace_size": str(int(recorded["workspace_mib"]) << 20),
        "trt_sparsity_enable": "1" if recorded["sparse_tactics"] else "0",
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
        **dict.fromkeys(_PRECISION_OPTIONS.get(precision, ()), "1"),
    }
    if recorded["optimization_level"] != "default":
        options["trt_builder_optimization_level"] = str(recorded["optimization_level"])
    if shapes is not None:
        for name, shape in (("min", shapes.smallest), ("opt", shapes.tuned), ("max", shapes.largest)):
            options[f"trt_profile_{name}_shapes"] = f"{input_name}:{'x'.join(map(str, shape))}"
    return [(TENSORRT.name, options), _CUDA_OPTIONS, (CPU.name, {})]


def recorded_options(provider: Provider, options: EngineOptions) -> dict[str, str | int | bool]:
    """All that changed an engine of `provider`, as its metadata keep it."""
    common: dict[str, str | int | bool] = {"batch": options.batch, "threads": options.threads}
    if provider is CPU:
        return {**common, "optimization": "extended"}
    if provider is CUDA:
        return {**common, "optimization": "extended", "tf32": False}
    level = options.optimization_level
    return {
        **common,
        "smallest_batch": options.smallest_batch,
        "largest_batch": options.largest_batch or options.batch,
        "smallest_image": options.smallest_image or "",
        "tuned_image": options.tuned_image or "",
        "largest_image": options.largest_image or "",
        "workspace_mib": options.workspace_mib,
        "sparse_tactics": options.sparse_tactics,
        "optimization_level": "default" if level is None else level,
        "tf32": True,  # the provider has no option that forbids it
    }
