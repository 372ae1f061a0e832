"""An inference session of ONNX Runtime, on the provider that was asked for or not at all."""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, final

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import ArtifactError, MachineError, UsageError
from masksparse_deploy.engine.batches import check_images, run_in_batches
from masksparse_deploy.engine.onnxruntime_providers import Provider
from masksparse_deploy.engine.protocol import Images

__all__ = ["OnnxRuntimeSession", "load_session", "session_settings"]

_LOG_FATAL_ONLY = 4
_INPUT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}


def session_settings(runtime: Any, level: Any, *, threads: int) -> Any:
    """SessionOptions with this optimisation level and so many threads; nothing is printed."""
    settings = runtime.SessionOptions()
    settings.graph_optimization_level = level
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    settings.log_severity_level = _LOG_FATAL_ONLY  # what goes wrong is raised as an exception
    # Idle threads of one session would go on spinning and take the cores of the next: timed in turn on two cores, a network
    # of 1.3 ms took 2.4 ms in the median and 6.5 ms in one of ten inferences.
    settings.add_session_config_entry("session.force_spinning_stop", "1")
    return settings


def load_session(
    runtime: Any, content: bytes, settings: Any, provider: Provider, providers: list[tuple[str, dict[str, str]]], *, what: str
) -> Any:
    """An InferenceSession of a model on `provider`.

    Raises:
        ArtifactError: ONNX Runtime refuses the model.
        MachineError: ONNX Runtime would run it on another provider, as it does without an error where libraries are missing.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of providers that are missing: checked below
            session = runtime.InferenceSession(content, settings, providers=providers)
    except Exception as error:  # the runtime's exceptions share no base class
        raise ArtifactError(f"ONNX Runtime refuses {what}: {_first_line(error)}; export or build it again") from error
    running = session.get_providers()
    if provider.name not in running:
        raise MachineError(
            f"the backend {provider.backend} does not work here: ONNX Runtime fell back to {', '.join(running)}, as it does "
            f"where libraries are missing or of another version; {provider.name} needs {provider.libraries} of the versions "
            "that this ONNX Runtime was built for"
        )
    return session


@final
class OnnxRuntimeSession:
    """A loaded plan; implements `engine.protocol.Session`. Batches below `smallest_batch` are filled up."""

    def __init__(self, runtime: Any, session: Any, *, batch: int, device: str = "cpu", smallest_batch: int = 1) -> None:
        (entry,) = session.get_inputs()
        self._runtime = runtime
        self._session = session
        self._device = device
        self._input_name: str = entry.name
        if entry.type not in _INPUT_TYPES:
            raise UsageError(f"the engine's input is a {entry.type}; it must take floating-point images: export the model so")
        self._input_type = _INPUT_TYPES[entry.type]
        self._input_shape = tuple(length if isinstance(length, int) else None for length in entry.shape)
        self._batch = self._input_shape[0] or batch
        self._pad = self._input_shape[0] is not None or smallest_batch > 1
        self._output_names: tuple[str, ...] = tuple(output.name for output in session.get_outputs())

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """As in the protocol."""
        return self._input_shape

    @property
    def output_names(self) -> tuple[str, ...]:
        """As in the protocol."""
        return self._output_names

    def run(self, images: Images) -> Mapping[str, npt.NDArray[Any]]:
        """As in the protocol."""
        check_images(images, self._input_shape)
        return run_in_batches(self._run_one, images, batch=self._batch, pad=self._pad)

    def prepare(self, images: Images) -> Callable[[], None]:
        """As in the protocol; inputs and outputs stay on the device, so that a timed inference has no transfers."""
        check_images(images, self._input_shape)
        batch = np.ascontiguousarray(images, dtype=self._input_type)
        outputs = self._run_one(images)
        binding = self._session.io_binding()
        from_numpy = self._runtime.OrtValue.ortvalue_from_numpy
        binding.bind_ortvalue_input(self._input_name, from_numpy(batch, self._device, 0))
        for name, array in outputs.items():
            binding.bind_ortvalue_output(name, from_numpy(array, self._device, 0))

        def infer() -> None:
            self._session.run_with_iobinding(binding)

        return infer

    def _run_one(self, images: Images) -> dict[str, npt.NDArray[Any]]:
        try:
            arrays = self._session.run(None, {self._input_name: np.ascontiguousarray(images, dtype=self._input_type)})
        except Exception as error:  # the runtime's exceptions share no base class
            raise ArtifactError(f"ONNX Runtime could not run the engine: {_first_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
