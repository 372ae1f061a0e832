"""The course of learning, for TensorBoard."""

from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from masksparse_deploy.core.files import make_folder, output_error
from masksparse_deploy.core.optional import require

__all__ = ["EventLog", "require_tensorboard"]


def require_tensorboard() -> Any:
    """The module that writes TensorBoard's files; raises MachineError where TensorBoard is not installed."""
    require("tensorboard", needed_for="mask.tensorboard")
    return require("torch.utils.tensorboard", needed_for="mask.tensorboard")


class EventLog:
    """Writes scalars into a folder that TensorBoard reads; without a folder it writes nothing.

    A context manager, which flushes and closes the file at the end. The file also holds the time and the machine's name.
    """

    def __init__(self, folder: Path | None, *, first_step: int = 0) -> None:
        """Open the log; what an earlier, interrupted run wrote from `first_step` on is no longer shown.

        Raises:
            MachineError: TensorBoard is not installed.
            OutputError: the folder cannot be written.
        """
        self._writer: Any = None
        if folder is None:
            return
        module = require_tensorboard()
        self._folder = make_folder(folder)
        try:
            self._writer = module.SummaryWriter(str(folder), purge_step=first_step)
        except OSError as error:
            raise output_error(folder, error) from error

    def __enter__(self) -> "EventLog":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._writer is not None:
            self._writer.close()

    @property
    def is_open(self) -> bool:
        """Whether anything is written."""
        return self._writer is not None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Write values by name, as of the end of a step; raises OutputError."""
        if self._writer is None:
            return
        try:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)
        except OSError as error:
            raise output_error(self._folder, error) from error
