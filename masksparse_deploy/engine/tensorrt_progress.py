"""A build's progress through the Progress callback, where TensorRT tells of it (10, 11)."""

from typing import Any

from masksparse_deploy.core.progress import Progress
from masksparse_deploy.engine.tensorrt_versions import optional

__all__ = ["make_monitor"]


def make_monitor(trt: Any, name: str, progress: Progress) -> Any | None:
    """An IProgressMonitor that reports the phase that moved last; None where the version has none (8.6).

    An exception of `progress`, a keyboard interrupt included, ends the build and is kept as `failure`: it must not reach
    TensorRT, which calls from its own code.
    """
    base: Any = optional(trt, "IProgressMonitor")
    if base is None:
        return None

    class ForwardingMonitor(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.failure: BaseException | None = None
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._totals[phase_name] = num_steps
            self._tell(phase_name, 0, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._tell(phase_name, step + 1, self._totals.get(phase_name, step + 1))
            return self.failure is None

        def phase_finish(self, phase_name: str) -> None:
            total = self._totals.pop(phase_name, 1)
            self._tell(phase_name, total, total)

        def _tell(self, phase_name: str, done: int, total: int) -> None:
            if self.failure is not None:
                return
            try:
                progress(f"build {name}: {phase_name}", done, total)
            except BaseException as error:  # re-raised by the caller of the build
                self.failure = error

    return ForwardingMonitor()
