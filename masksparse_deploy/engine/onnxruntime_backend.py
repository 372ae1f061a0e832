"""ONNX Runtime: the backend that works everywhere, and its providers for GPUs.

A plan is the model after ONNX Runtime's standard and fused optimisations, as an ONNX file. Optimisations that change the
layout of the weights happen when the plan is loaded, so that the weights that run can be read back from the plan. The TensorRT
provider compiles the file itself: its plan is the file, and what it compiles lies in a folder beside it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, final

from masksparse_deploy.core.artifacts.engines import BackendStatus, DeviceFacts, EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.core.files import atomic_output, make_folder, sha256_bytes
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.driver import DriverAnswer, query_driver
from masksparse_deploy.engine.expose import expose_in_plan
from masksparse_deploy.engine.onnxruntime_layers import plan_layers
from masksparse_deploy.engine.onnxruntime_providers import (
    CPU,
    Provider,
    compiling_options,
    missing_for_gpu,
    plain_options,
    recorded_options,
)
from masksparse_deploy.engine.onnxruntime_session import OnnxRuntimeSession, load_session, session_settings
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.plans import built_options, read_plan
from masksparse_deploy.engine.plans import metadata_path as written_metadata_path
from masksparse_deploy.engine.processor import available_core_count, processor_facts
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.engine.shape_profile import shape_range
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.graph.annotations import ROLE, ROLE_REWRITTEN
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["OnnxRuntimeBackend"]

_REWRITTEN = "this runtime has no 2:4 kernels: rewritten layers leave their zeros out by standard operators"


@final
@dataclass(frozen=True)
class OnnxRuntimeBackend:
    """Builds and runs engines with one of ONNX Runtime's providers, the CPU's by default.

    Attributes:
        provider: where engines run.
        ask_driver: tells of the GPU, for providers that need one; tests pass a stand-in.
    """

    provider: Provider = CPU
    ask_driver: Callable[[], DriverAnswer] = query_driver

    @property
    def name(self) -> str:
        """As in the configuration."""
        return self.provider.backend

    @property
    def refit_rebuilds(self) -> bool:
        """As in `engine.protocol.Refits`: ONNX Runtime cannot change the weights of a plan."""
        return True

    def status(self) -> BackendStatus:
        """Whether ONNX Runtime can be imported here and has what the provider needs, and its version."""
        device: DeviceFacts | None = None
        try:
            if self.provider is CPU:
                device = processor_facts()
                _runtime()
                reason = ""
            else:
                answer = self.ask_driver()
                device = answer.device
                missing = missing_for_gpu(self.provider, answer, lambda: list(_runtime().get_available_providers()))
                reason = "; ".join([*missing, "without it use the backend onnxruntime"] if missing else [])
        except MachineError as error:
            reason = str(error)
        return BackendStatus(backend=self.name, available=not reason, reason=reason, versions=_versions(), device=device)

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
        """Optimise the model offline and write `name.plan.onnx` and `name.engine.json`; see `engine.protocol.Backend`."""
        runtime, device = self._ready()
        progress(f"build {name}", 0, 2)
        source = read_source(onnx_path, expose)
        # refuses, before the work begins, a tensor that cannot be returned
        with_all = source.with_exposed_outputs()
        recorded = recorded_options(self.provider, options)
        plan_path = make_folder(folder) / f"{name}.plan.onnx"
        with atomic_output(plan_path) as partial:
            # shows that the folder takes files of this size before the runtime, whose errors do not tell, writes there
            partial.write_bytes(with_all)
            if self.provider.compiles:
                plan = with_all
                self._load(runtime, plan, recorded, source.precision, plan_path, threads=1, what=str(onnx_path))
            else:
                plan = self._optimize(runtime, source, partial, what=str(onnx_path))
        progress(f"build {name}", 1, 2)
        artifact = EngineArtifact(
            backend=self.name,
            plan=plan_path.name,
            plan_sha256=sha256_bytes(plan),
            source_sha256=source.graph.sha256,
            precision=source.precision,
            options=recorded,
            versions=_versions(),
            device=device,
            layers=() if self.provider.compiles else plan_layers(parse_graph(plan, name=str(plan_path)), source),
            exposed=source.exposed,
            sparse_kernels=_REWRITTEN if source.graph.metadata.get(ROLE) == ROLE_REWRITTEN else self.provider.kernels,
            own_operators=source.own_operators,
        )
        artifact.write(written_metadata_path(folder, name))
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
        """Build anew with the same options; see `engine.protocol.Refits`."""
        old, _ = read_plan(metadata_path, backend=self.name)
        options = built_options(old.options)
        built = self.build(onnx_path, folder, options, name=name, expose=old.exposed, progress=progress)
        artifact = built.model_copy(update={"refitted_from_sha256": old.plan_sha256})
        artifact.write(written_metadata_path(folder, name))
        return artifact

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Load a plan with all optimisations; see `engine.protocol.Backend`."""
        runtime, _ = self._ready()
        artifact, plan = read_plan(metadata_path, backend=self.name)
        batch = artifact.options.get("batch")
        if not isinstance(batch, int) or batch < 1:
            raise ArtifactError(f"{metadata_path} has the batch {batch}, not a positive number; run 'masksparse build' again")
        plan_path = metadata_path.parent / artifact.plan
        cores = threads or available_core_count()
        session = self._load(runtime, plan, artifact.options, artifact.precision, plan_path, threads=cores, what=str(plan_path))
        smallest = int(artifact.options.get("smallest_batch", 1))
        yield OnnxRuntimeSession(runtime, session, batch=batch, device=self.provider.device, smallest_batch=smallest)

    def _ready(self) -> tuple[Any, DeviceFacts]:
        """The module and the device; raises MachineError where something is missing."""
        if self.provider is CPU:
            return _runtime(), processor_facts()
        status = self.status()
        if not status.available or status.device is None:
            raise MachineError(f"the backend {self.name} does not work here: {status.reason}")
        return _runtime(), status.device

    def _optimize(self, runtime: Any, source: Source, path: Path, *, what: str) -> bytes:
        """The model after the optimisations that leave weights as they are, by way of the file `path`, its tensors exposed."""
        plan = self._optimized(runtime, source.content, path, what=what)
        if source.exposed:
            plan, fused_away = expose_in_plan(plan, source.content, source.exposed)
            if fused_away:  # only marked in the source do these survive
                marked = replace(source, exposed=fused_away).with_exposed_outputs()
                plan, _ = expose_in_plan(self._optimized(runtime, marked, path, what=what), source.content, source.exposed)
            path.write_bytes(plan)
        return plan

    def _optimized(self, runtime: Any, model: bytes, path: Path, *, what: str) -> bytes:
        settings = session_settings(runtime, runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, threads=1)
        settings.optimized_model_filepath = str(path)
        load_session(runtime, model, settings, self.provider, plain_options(self.provider), what=what)
        return path.read_bytes()

    def _load(
        self,
        runtime: Any,
        plan: bytes,
        recorded: Mapping[str, Any],
        precision: str,
        plan_path: Path,
        *,
        threads: int,
        what: str,
    ) -> Any:
        """A session of a plan, with what `recorded`, the options in its metadata, say."""
        if not self.provider.compiles:
            providers = plain_options(self.provider)
        else:
            # what is compiled is kept beside the plan, so that it is compiled once
            folder = make_folder(plan_path.with_name(plan_path.name.removesuffix(".plan.onnx") + ".compiled"))
            ((input_name, shape),) = parse_graph(plan, name=str(plan_path)).inputs.items()
            shapes = shape_range(shape, built_options(recorded), input_name=input_name)
            providers = compiling_options(recorded, precision=precision, shapes=shapes, input_name=input_name, folder=folder)
        settings = session_settings(runtime, runtime.GraphOptimizationLevel.ORT_ENABLE_ALL, threads=threads)
        return load_session(runtime, plan, settings, self.provider, providers, what=what)


def _runtime() -> Any:
    both = installed_versions("onnxruntime", "onnxruntime-gpu")
    if len(both) > 1:
        raise MachineError(
            f"onnxruntime {both['onnxruntime']} and onnxruntime-gpu {both['onnxruntime-gpu']} are both installed and overwrite "
            "each other's files; keep one: pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime, or "
            "onnxruntime-gpu for its GPU providers"
        )
    return require("onnxruntime", needed_for="building and running engines")


def _versions() -> dict[str, str]:
    return installed_versions("onnxruntime", "onnxruntime-gpu")
