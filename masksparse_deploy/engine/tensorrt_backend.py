"""TensorRT 8.6, 10 and 11, where the package and a GPU are there."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.core.files import make_folder, sha256_bytes, write_atomic
from masksparse_deploy.core.optional import EXTRAS, is_installed, require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.driver import DriverAnswer, query_driver
from masksparse_deploy.engine.inspector import count_sparse, parse_inspector
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.plans import metadata_path, read_plan
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.engine.tensorrt_build import build_plan, inspect_engine
from masksparse_deploy.engine.tensorrt_session import TensorRTSession

__all__ = ["TensorRTBackend"]

# import name -> package name
_NEEDED_PACKAGES = {"tensorrt": "tensorrt", "cuda": "cuda-bindings"}


@final
@dataclass(frozen=True)
class TensorRTBackend:
    """Builds and runs engines with TensorRT; asks the CUDA driver before it imports anything.

    Attributes:
        ask_driver: tells of the GPU; tests pass a stand-in.
    """

    name: ClassVar[str] = "tensorrt"
    ask_driver: Callable[[], DriverAnswer] = query_driver

    def status(self) -> BackendStatus:
        """Whether driver, GPU and packages are there; imports nothing."""
        answer = self.ask_driver()
        missing = [] if answer.device is not None else [answer.reason]
        packages = [package for package in _NEEDED_PACKAGES if not is_installed(package)]
        if packages:
            extras = ",".join(sorted(EXTRAS[package] for package in packages))
            names = ", ".join(_NEEDED_PACKAGES[package] for package in packages)
            missing.append(f"not installed: {names} (pip install 'masksparse-deploy[{extras}]')")
        if missing:
            missing.append("on a machine without an NVIDIA GPU use the backend onnxruntime")
        return BackendStatus(
            backend=self.name,
            available=not missing,
            reason="; ".join(missing),
            versions=_versions(),
            device=answer.device,
        )

    def build(
        self,
        onnx_path: Path,
        folder: Path,
        options: EngineOptions,
        *,
        name: str,
        expose: tuple[str, ...] = (),
        progress: Progress = silent,
    ) -> EngineArtifact:
        """Build with sparse tactics allowed; writes `name.plan`, `name.inspector.json` and `name.engine.json`.

        See `engine.protocol.Backend`. TensorRT times tactics while it builds: two builds may differ.
        """
        trt, _, device = self._ready()
        progress(f"build {name}", 0, 2)
        source = read_source(onnx_path, expose)
        logger = trt.Logger(trt.Logger.ERROR)
        plan = build_plan(trt, logger, source, options)
        progress(f"build {name}", 1, 2)
        inspected = inspect_engine(trt, _deserialize(trt, logger, plan, what=f"the engine built from {onnx_path}"))
        layers = parse_inspector(inspected)
        plan_path = make_folder(folder) / f"{name}.plan"
        write_atomic(plan_path, plan)
        write_atomic(folder / f"{name}.inspector.json", inspected.encode())
        artifact = EngineArtifact(
            backend=self.name,
            plan=plan_path.name,
            plan_sha256=sha256_bytes(plan),
            source_sha256=source.graph.sha256,
            precision=source.precision,
            options={"batch": options.batch, "workspace_mib": options.workspace_mib, "sparse_weights": True, "tf32": False},
            versions=_versions(),
            device=device,
            layers=layers,
            exposed=source.exposed,
            sparse_kernels=count_sparse(layers),
            own_operators=source.own_operators,
        )
        artifact.write(metadata_path(folder, name))
        progress(f"build {name}", 2, 2)
        return artifact

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Load a plan on the device it was built for; `threads` has no meaning here. See `engine.protocol.Backend`."""
        trt, cudart, device = self._ready()
        artifact, plan = read_plan(metadata_path, backend=self.name)
        _check_same_device(artifact, device, metadata_path)
        logger = trt.Logger(trt.Logger.ERROR)
        engine = _deserialize(trt, logger, plan, what=str(metadata_path.parent / artifact.plan))
        batch = int(artifact.options["batch"])
        with TensorRTSession(trt, cudart, engine, batch=batch, exposed=artifact.exposed) as session:
            yield session

    def _ready(self) -> tuple[Any, Any, DeviceFacts]:
        """The modules tensorrt and cuda.bindings.runtime, and the device; raises MachineError where one is missing."""
        status = self.status()
        if not status.available or status.device is None:
            raise MachineError(f"the backend tensorrt does not work here: {status.reason}")
        purpose = "building and running TensorRT engines"
        return require("tensorrt", needed_for=purpose), require("cuda.bindings.runtime", needed_for=purpose), status.device


def _versions() -> dict[str, str]:
    return installed_versions("tensorrt", "cuda-bindings")


def _deserialize(trt: Any, logger: Any, plan: bytes, *, what: str) -> Any:
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise ArtifactError(f"TensorRT {trt.__version__} cannot load {what}; run 'masksparse build' again on this machine")
    return engine


def _check_same_device(artifact: EngineArtifact, device: DeviceFacts, path: Path) -> None:
    """Plans belong to one kind of GPU and one version of TensorRT."""
    built = (artifact.device.name, artifact.versions.get("tensorrt"))
    here = (device.name, _versions().get("tensorrt"))
    if built != here:
        raise ArtifactError(
            f"{path} was built for {built[0]} with TensorRT {built[1]}; this is {here[0]} with TensorRT {here[1]}: "
            "run 'masksparse build' again on this machine"
        )
