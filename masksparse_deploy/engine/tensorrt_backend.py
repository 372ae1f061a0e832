"""TensorRT 8.6, 10 and 11, where the package and a GPU are there."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact
from masksparse_deploy.core.config import NO_TIMING_CACHE, EngineOptions
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.files import make_folder, sha256_bytes, write_atomic
from masksparse_deploy.core.optional import EXTRAS, is_installed, require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.build_log import is_told
from masksparse_deploy.engine.built_precision import check_precision
from masksparse_deploy.engine.driver import DriverAnswer, query_driver
from masksparse_deploy.engine.inspector import count_sparse, parse_inspector
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.plans import metadata_path, read_plan
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.engine.tensorrt_build import build_plan, inspect_engine
from masksparse_deploy.engine.tensorrt_load import check_runs_here, load_engine
from masksparse_deploy.engine.tensorrt_log import kept_messages
from masksparse_deploy.engine.tensorrt_refit import refit_plan
from masksparse_deploy.engine.tensorrt_session import TensorRTSession
from masksparse_deploy.engine.tensorrt_versions import is_strongly_typed, recorded_options
from masksparse_deploy.engine.timing_cache import TimingCache, cache_key, timing_cache_in

__all__ = ["TensorRTBackend"]

# import name -> package name
_NEEDED_PACKAGES = {"tensorrt": "tensorrt", "cuda": "cuda-bindings", "polygraphy": "polygraphy"}


@final
@dataclass(frozen=True)
class TensorRTBackend:
    """Builds and runs engines with TensorRT; asks the CUDA driver before it imports anything.

    Attributes:
        ask_driver: tells of the GPU; tests pass a stand-in.
    """

    name: ClassVar[str] = "tensorrt"
    refit_rebuilds: ClassVar[bool] = False
    ask_driver: Callable[[], DriverAnswer] = query_driver

    def status(self) -> BackendStatus:
        """Whether driver, GPU and packages are there; imports TensorRT only where nothing is missing."""
        answer = self.ask_driver()
        missing = [] if answer.device is not None else [answer.reason]
        versions = _versions()
        packages = [package for package in _NEEDED_PACKAGES if not is_installed(package)]
        if packages:
            extras = ",".join(sorted({EXTRAS[package] for package in packages}))
            names = ", ".join(_NEEDED_PACKAGES[package] for package in packages)
            missing.append(f"not installed: {names} (pip install 'masksparse-deploy[{extras}]')")
        if not missing:
            try:
                versions = _versions_of(_modules()[0])
            except MachineError as error:  # it is there and broken, or for another Python or driver
                missing.append(str(error))
        if missing:
            missing.append("on a machine without an NVIDIA GPU use the backend onnxruntime")
        return BackendStatus(
            backend=self.name,
            available=not missing,
            reason="; ".join(missing),
            versions=versions,
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
        """Build an engine; writes `name.plan`, `name.inspector.json`, `name.engine.json` and what the builder told of tactics.

        See `engine.protocol.Backend`. TensorRT times tactics while it builds: two builds may differ.
        """
        trt, _, device = self._ready()
        source = read_source(onnx_path, expose)
        progress(f"build {name}", 0, 2)
        started = time.monotonic()
        cache = _timing_cache(options, source.precision, folder, device, _versions_of(trt))
        with kept_messages(trt) as (logger, messages):
            built = build_plan(trt, logger, messages, source, options, name=name, cache=cache, progress=progress)
            build_seconds = time.monotonic() - started
            progress(f"build {name}", 1, 2)
            engine = load_engine(trt, logger, messages, built.plan, what=f"the engine built from {onnx_path}", trusted=True)
            inspected = inspect_engine(trt, engine)
        layers = parse_inspector(inspected)
        findings = (*built.findings, *check_precision(source.graph, layers, binding=is_strongly_typed(trt)))
        artifact = EngineArtifact(
            backend=self.name,
            plan="",
            plan_sha256="",
            source_sha256=source.graph.sha256,
            precision=source.precision,
            options=recorded_options(options),
            versions=_versions_of(trt),
            device=device,
            layers=layers,
            exposed=source.exposed,
            sparse_kernels=count_sparse(layers),
            own_operators=source.own_operators,
            findings=findings,
            build_seconds=build_seconds,
            timing_cache_sha256=built.timing_cache_sha256,
            build_log=_write_log(make_folder(folder), name, messages.lines),
        )
        artifact = _write(artifact, built.plan, inspected, folder, name)
        progress(f"build {name}", 2, 2)
        return artifact

    def refit(
        self,
        metadata_path: Path,
        onnx_path: Path,
        folder: Path,
        *,
        name: str,
        changed: tuple[str, ...],
        progress: Progress = silent,
    ) -> EngineArtifact:
        """Change the weights of a built engine; see `engine.protocol.Refits`."""
        trt, _, device = self._ready()
        old, plan = read_plan(metadata_path, backend=self.name)
        check_runs_here(old, device, _versions_of(trt), metadata_path)
        source = read_source(onnx_path, old.exposed)
        with kept_messages(trt) as (logger, messages):
            what = str(metadata_path.parent / old.plan)
            engine = load_engine(trt, logger, messages, plan, what=what, trusted=_is_compatible(old))
            new_plan = refit_plan(trt, logger, messages, engine, source, changed)
            inspected = inspect_engine(trt, engine)
        layers = parse_inspector(inspected)
        changes = {
            "source_sha256": source.graph.sha256,
            "layers": layers,
            "sparse_kernels": count_sparse(layers),
            "refitted_from_sha256": old.plan_sha256,
            "build_log": _write_log(make_folder(folder), name, _read_log(metadata_path.parent, old)),
        }
        return _write(old.model_copy(update=changes), new_plan, inspected, folder, name)

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Load a plan on the device it was built for; `threads` has no meaning here. See `engine.protocol.Backend`."""
        trt, cudart, device = self._ready()
        artifact, plan = read_plan(metadata_path, backend=self.name)
        check_runs_here(artifact, device, _versions_of(trt), metadata_path)
        with kept_messages(trt) as (logger, messages):
            what = str(metadata_path.parent / artifact.plan)
            engine = load_engine(trt, logger, messages, plan, what=what, trusted=_is_compatible(artifact))
            batches = {name: int(artifact.options.get(name, 1)) for name in ("batch", "smallest_batch")}
            exposed = artifact.exposed
            with TensorRTSession(trt, cudart, engine, exposed=exposed, messages=messages, **batches) as session:
                yield session

    def _ready(self) -> tuple[Any, Any, DeviceFacts]:
        """The modules tensorrt and cuda.bindings.runtime, and the device; raises MachineError where one is missing."""
        status = self.status()
        if not status.available or status.device is None:
            raise MachineError(f"the backend tensorrt does not work here: {status.reason}")
        return *_modules(), status.device


def _modules() -> tuple[Any, Any]:
    purpose = "building and running TensorRT engines"
    return require("tensorrt", needed_for=purpose), require("cuda.bindings.runtime", needed_for=purpose)


def _versions_of(trt: Any) -> dict[str, str]:
    """With the version that the imported module tells, which need not have been installed as a package."""
    return {**_versions(), "tensorrt": str(trt.__version__)}


def _versions() -> dict[str, str]:
    return installed_versions("tensorrt", "cuda-bindings", "polygraphy")


def _is_compatible(artifact: EngineArtifact) -> bool:
    return artifact.options.get("version_compatible") is True


def _write(artifact: EngineArtifact, plan: bytes, inspected: str, folder: Path, name: str) -> EngineArtifact:
    """Write plan, inspector's text and, at the end, the metadata, which are returned with the plan's name and digest."""
    path = make_folder(folder) / f"{name}.plan"
    write_atomic(path, plan)
    write_atomic(folder / f"{name}.inspector.json", inspected.encode())
    artifact = artifact.model_copy(update={"plan": path.name, "plan_sha256": sha256_bytes(plan)})
    artifact.write(metadata_path(folder, name))
    return artifact


def _timing_cache(
    options: EngineOptions, precision: str, folder: Path, device: DeviceFacts, versions: Mapping[str, str]
) -> TimingCache | None:
    if options.timing_cache == NO_TIMING_CACHE:
        return None
    where = folder / "timing_cache" if options.timing_cache is None else Path(options.timing_cache)
    return timing_cache_in(where, cache_key(device, versions, recorded_options(options), precision=precision))


def _read_log(folder: Path, artifact: EngineArtifact) -> list[str]:
    """What the builder told of an engine's tactics, which new weights do not change; nothing where the file is gone."""
    path = folder / Path(artifact.build_log).name
    return path.read_text(encoding="utf-8", errors="replace").splitlines() if artifact.build_log and path.is_file() else []


def _write_log(folder: Path, name: str, lines: list[str]) -> str:
    """Keep what the builder told of sparsity and tactics; returns the file's name, "" if it told nothing."""
    path = folder / f"{name}.build.log"
    told = [line for line in lines if is_told(line)]
    if not told:
        path.unlink(missing_ok=True)
        return ""
    write_atomic(path, "\n".join([*told, ""]).encode())
    return path.name
