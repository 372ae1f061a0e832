"""What every backend implements: status, build, open; and what an opened engine can do."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import BackendStatus, EngineArtifact
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.progress import Progress, silent

__all__ = ["WITHOUT_SPARSE_KERNELS", "Backend", "DeviceTimed", "Refits", "Session"]

Images = npt.NDArray[np.float32]

# Backends whose runtimes have no kernels for 2:4 sparsity.
WITHOUT_SPARSE_KERNELS = ("onnxruntime", "onnxruntime-cuda")


class Session(Protocol):
    """An engine bound and ready to run: one image input, one or more outputs."""

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """(batch, channels, height, width); None where the engine takes any length."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """The model's outputs first, then the exposed intermediate tensors."""

    def run(self, images: Images) -> Mapping[str, npt.NDArray[Any]]:
        """All outputs for float32 images (count, channels, height, width); any count, in batches as the engine allows."""

    def prepare(self, images: Images) -> Callable[[], None]:
        """Bind one batch of inputs; each call of the result runs one inference to its end, for timing."""


@runtime_checkable
class DeviceTimed(Protocol):
    """A session whose device tells the time itself; one that runs on the CPU need not implement it.

    Images are one batch, float32 (batch, channels, height, width).
    """

    def time_on_device(self, images: Images, *, cuda_graph: bool) -> Callable[[], float]:
        """Bind the batch; each call of the result runs one inference and returns the GPU's time for it in milliseconds.

        Without transfers. With `cuda_graph` the inference is recorded once and replayed, so that launching its kernels costs
        next to nothing.

        Raises:
            MachineError: the inference cannot be recorded as a graph.
        """

    def prepare_with_transfers(self, images: Images) -> Callable[[], None]:
        """Each call of the result copies the batch to the device, runs one inference and copies all outputs back."""

    def layer_times_ms(self, images: Images, *, count: int) -> Mapping[str, tuple[float, ...]]:
        """The times of every layer in `count` inferences, by the engine's name of the layer.

        Telling layers apart slows an inference: the times add up to more than the whole takes.
        """


class Backend(Protocol):
    """A runtime that builds engines from ONNX files and runs them."""

    @property
    def name(self) -> str:
        """As in the configuration, for example "tensorrt"."""

    def status(self) -> BackendStatus:
        """Whether this backend works here and why not; never raises and never crashes the process."""

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
        """Build an engine and write the plan, then its metadata as `folder / (name + ".engine.json")`.

        Args:
            onnx_path: the model, weights inside the file.
            folder: where plan and metadata are written, whole or not at all.
            options: what changes the engine.
            name: stem of the files, as "sparse".
            expose: intermediate tensors to return besides the model's own outputs.
            progress: told how far the build is.

        Raises:
            MachineError: the backend does not work on this machine; says what is missing.
            ArtifactError: the ONNX file is damaged or the runtime refuses it.
            UsageError: there is no such file or intermediate tensor.
        """

    def open(self, metadata_path: Path, *, threads: int = 0) -> AbstractContextManager[Session]:
        """Load the engine described by `metadata_path` (an engine.json); `threads` 0 means all cores.

        Raises:
            ArtifactError: the plan is missing, or its digest is not the recorded one (both are shown).
            MachineError: the backend does not work on this machine.
        """


@runtime_checkable
class Refits(Protocol):
    """A backend that puts new weights into an engine; `engine.refit.run.refit` does so with all checks."""

    @property
    def refit_rebuilds(self) -> bool:
        """Whether it cannot change weights, and builds anew with the old engine's options instead."""

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
        """Write the engine of `metadata_path` with the weights of `onnx_path`, the same network, to `folder`, as `build` does.

        Args:
            metadata_path: the old engine.
            onnx_path: the file with the new weights.
            folder: where plan and metadata are written.
            name: stem of the files.
            changed: names of the constants that differ from those of the engine's file.
            progress: told how far the work is.

        Raises:
            UsageError: the engine was not built for new weights, or has no place for one that changed.
            ArtifactError: the plan is damaged, or the runtime refuses the weights.
            MachineError: the backend does not work on this machine.
        """
