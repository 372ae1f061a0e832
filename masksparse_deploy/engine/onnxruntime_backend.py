"""ONNX Runtime on the CPU: the backend that works everywhere.

A plan is the model after ONNX Runtime's standard and fused optimisations, as an ONNX file. Optimisations that change the
layout of the weights happen when the plan is loaded, so that the weights that run can be read back from the plan.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import BackendStatus, EngineArtifact, EngineLayer
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.core.files import atomic_output, make_folder, sha256_bytes
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.batches import check_images, run_in_batches
from masksparse_deploy.engine.expose import expose_in_plan
from masksparse_deploy.engine.packages import installed_versions
from masksparse_deploy.engine.plans import metadata_path as written_metadata_path
from masksparse_deploy.engine.plans import read_plan
from masksparse_deploy.engine.processor import available_core_count, processor_facts
from masksparse_deploy.engine.protocol import Images, Session
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.graph.annotations import ROLE, ROLE_REWRITTEN
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["OnnxRuntimeBackend"]

_PROVIDERS = ["CPUExecutionProvider"]
_LOG_FATAL_ONLY = 4
_NO_KERNELS = "this runtime has no 2:4 kernels: it multiplies the zeros too"
_REWRITTEN = "this runtime has no 2:4 kernels: rewritten layers leave their zeros out by standard operators"
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


@final
class OnnxRuntimeBackend:
    """Builds and runs engines with ONNX Runtime's CPU provider."""

    name = "onnxruntime"
    refit_rebuilds = True

    def status(self) -> BackendStatus:
        """Whether ONNX Runtime can be imported here, and its version."""
        try:
            _runtime()
            reason = ""
        except MachineError as error:
            reason = str(error)
        return BackendStatus(
            backend=self.name, available=not reason, reason=reason, versions=_versions(), device=processor_facts()
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
        """Optimise the model offline and write `name.plan.onnx` and `name.engine.json`; see `engine.protocol.Backend`."""
        runtime = _runtime()
        progress(f"build {name}", 0, 2)
        source = read_source(onnx_path, expose)
        # refuses, before the work begins, a tensor that cannot be returned
        with_all = source.with_exposed_outputs()
        plan_path = make_folder(folder) / f"{name}.plan.onnx"
        with atomic_output(plan_path) as partial:
            # shows that the folder takes files of this size before the runtime, whose errors do not tell, writes there
            partial.write_bytes(with_all)
            plan = _optimize(runtime, source.content, partial, what=str(onnx_path))
            if source.exposed:
                plan, fused_away = expose_in_plan(plan, source.content, source.exposed)
                if fused_away:  # only marked in the source do these survive
                    marked = replace(source, exposed=fused_away).with_exposed_outputs()
                    plan, _ = expose_in_plan(
                        _optimize(runtime, marked, partial, what=str(onnx_path)), source.content, source.exposed
                    )
                partial.write_bytes(plan)
        progress(f"build {name}", 1, 2)
        artifact = EngineArtifact(
            backend=self.name,
            plan=plan_path.name,
            plan_sha256=sha256_bytes(plan),
            source_sha256=source.graph.sha256,
            precision=source.precision,
            options={"batch": options.batch, "threads": options.threads, "optimization": "extended"},
            versions=_versions(),
            device=processor_facts(),
            layers=_layers(parse_graph(plan, name=str(plan_path)), source),
            exposed=source.exposed,
            sparse_kernels=_REWRITTEN if source.graph.metadata.get(ROLE) == ROLE_REWRITTEN else _NO_KERNELS,
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
        """Build anew with the same options, which takes seconds; see `engine.protocol.Refits`."""
        old, _ = read_plan(metadata_path, backend=self.name)
        batch, threads = (int(old.options.get(option, default)) for option, default in (("batch", 1), ("threads", 0)))
        options = EngineOptions(batch=batch, threads=threads)
        built = self.build(onnx_path, folder, options, name=name, expose=old.exposed, progress=progress)
        artifact = built.model_copy(update={"refitted_from_sha256": old.plan_sha256})
        artifact.write(written_metadata_path(folder, name))
        return artifact

    @contextmanager
    def open(self, metadata_path: Path, *, threads: int = 0) -> Iterator[Session]:
        """Load a plan with all optimisations; see `engine.protocol.Backend`."""
        runtime = _runtime()
        artifact, plan = read_plan(metadata_path, backend=self.name)
        batch = artifact.options.get("batch")
        if not isinstance(batch, int) or batch < 1:
            raise ArtifactError(f"{metadata_path} has the batch {batch}, not a positive number; run 'masksparse build' again")
        settings = _settings(runtime, runtime.GraphOptimizationLevel.ORT_ENABLE_ALL, threads=threads or available_core_count())
        session = _load(runtime, plan, settings, what=str(metadata_path.parent / artifact.plan))
        yield _OnnxRuntimeSession(runtime, session, batch=batch)


@final
class _OnnxRuntimeSession:
    """An inference session on the CPU; implements `engine.protocol.Session`."""

    def __init__(self, runtime: Any, session: Any, *, batch: int) -> None:
        (entry,) = session.get_inputs()
        self._runtime = runtime
        self._session = session
        self._input_name: str = entry.name
        if entry.type not in _INPUT_TYPES:
            raise UsageError(f"the engine's input is a {entry.type}; it must take floating-point images: export the model so")
        self._input_type = _INPUT_TYPES[entry.type]
        self._input_shape = tuple(length if isinstance(length, int) else None for length in entry.shape)
        self._batch = self._input_shape[0] or batch
        self._output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        return self._output_names

    def run(self, images: Images) -> Mapping[str, npt.NDArray[Any]]:
        check_images(images, self._input_shape)
        return run_in_batches(self._run_one, images, batch=self._batch, pad=self._input_shape[0] is not None)

    def prepare(self, images: Images) -> Callable[[], None]:
        check_images(images, self._input_shape)
        batch = np.ascontiguousarray(images, dtype=self._input_type)
        outputs = self._run_one(images)
        binding = self._session.io_binding()
        from_numpy = self._runtime.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_input(self._input_name, from_numpy(batch))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, from_numpy(array))

        def infer() -> None:
            self._session.run_with_iobinding(binding)

        return infer

    def _run_one(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        try:
            arrays = self._session.run(None, {self._input_name: np.ascontiguousarray(images, dtype=self._input_type)})
        except Exception as error:  # the runtime's exceptions share no base class
            raise ArtifactError(f"ONNX Runtime could not run the engine: {_first_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))


def _runtime() -> Any:
    both = installed_versions("onnxruntime", "onnxruntime-gpu")
    if len(both) > 1:
        raise MachineError(
            f"onnxruntime {both['onnxruntime']} and onnxruntime-gpu {both['onnxruntime-gpu']} are both installed and overwrite "
            "each other's files; keep one: pip uninstall onnxruntime onnxruntime-gpu, then pip install onnxruntime"
        )
    return require("onnxruntime", needed_for="building and running engines on the CPU")


def _versions() -> dict[str, str]:
    return installed_versions("onnxruntime", "onnxruntime-gpu")


def _settings(runtime: Any, level: Any, *, threads: int) -> Any:
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = level
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _LOG_FATAL_ONLY  # what goes wrong is raised as an exception
    # Idle threads of one session would go on spinning and take the cores of the next: timed in turn on two cores, a network
    # of 1.3 ms took 2.4 ms in the median and 6.5 ms in one of ten inferences.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def _optimize(runtime: Any, model: bytes, path: Path, *, what: str) -> bytes:
    """The model after the optimisations that leave weights as they are, by way of the file `path`."""
    settings = _settings(runtime, runtime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED, threads=1)
    settings.optimized_model_filepath = str(path)
    _load(runtime, model, settings, what=what)
    return path.read_bytes()


def _load(runtime: Any, content: bytes, settings: Any, *, what: str) -> Any:
    try:
        return runtime.InferenceSession(content, settings, providers=_PROVIDERS)
    except Exception as error:  # the runtime's exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses {what}: {_first_line(error)}; export or build it again") from error


def _layers(plan: Graph, source: Source) -> tuple[EngineLayer, ...]:
    """The operators of the plan that read a weight (a constant with two axes or more), also behind quantizers."""
    layers = []
    weights = {name for name, array in plan.constants.items() if array.ndim >= 2}
    for node in plan.nodes:
        if weights.isdisjoint(node.inputs):
            continue
        if node.op in _QUANTIZERS:
            weights.update(node.outputs)
            continue
        layers.append(
            EngineLayer(
                name=node.name or node.outputs[0],
                onnx_nodes=_merged_nodes(node, source.graph) or _namesake(node, source.graph),
                tactic=f"{node.domain}.{node.op}" if node.domain else node.op,
                is_sparse=False,
                reason="ONNX Runtime has no 2:4 kernels",
            )
        )
    return tuple(layers)


def _merged_nodes(node: Node, source: Graph) -> tuple[str, ...]:
    """The nodes of the source between the inputs and the outputs of a node of the plan, inputs first.

    Empty where the optimiser renamed tensors, so that the two cannot be matched.
    """
    producers = {name: candidate for candidate in source.nodes for name in candidate.outputs}
    ends = {"", *node.inputs, *source.constants}
    found: dict[str, None] = {}

    def reaches_inputs(tensor: str) -> bool:
        if tensor in ends:
            return True
        if tensor not in producers:  # an input of the model that the plan's node does not read
            return False
        producer = producers[tensor]
        if producer.name not in found:
            if not all(reaches_inputs(name) for name in producer.inputs):
                return False
            found[producer.name] = None
        return True

    return tuple(found) if all(reaches_inputs(name) for name in node.outputs) else ()


def _namesake(node: Node, source: Graph) -> tuple[str, ...]:
    """The node of the source whose name the optimiser kept while it renamed tensors around it."""
    return tuple(candidate.name for candidate in source.nodes if candidate.name == node.name)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
