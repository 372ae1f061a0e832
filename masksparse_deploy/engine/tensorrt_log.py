"""TensorRT's messages, kept line by line while an engine is built instead of printed."""

import functools
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["BuilderMessages", "kept_messages"]

_SHOWN_ERRORS = 3


class BuilderMessages:
    """The messages of one block, in order; `lines` holds them all, `errors` those that report an error, `warnings` likewise."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.errors: list[str] = []
        self.warnings: list[str] = []

    def reasons(self) -> str:
        """The last errors in one line, for a message; TensorRT 8.6 tells as a warning that CUDA does not work."""
        return "; ".join(dict.fromkeys((self.errors or self.warnings)[-_SHOWN_ERRORS:])) or "no reason given"


@contextmanager
def kept_messages(trt: Any) -> Iterator[tuple[Any, BuilderMessages]]:
    """Yield a logger for `trt` and what it keeps while the block runs, within blocks inside of it too.

    Engines that are open together run in turn: what one says must not be kept for another that was opened later alone.
    """
    logger = _logger(trt)
    messages = BuilderMessages()
    logger.kept.append(messages)
    try:
        yield logger, messages
    finally:
        logger.kept.remove(messages)


@functools.lru_cache(maxsize=1)
def _logger(trt: Any) -> Any:
    """One logger for the process: TensorRT sends most of what it says to the first one that it was given."""
    severities = trt.ILogger.Severity

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.kept: list[BuilderMessages] = []

        def log(self, severity: Any, message: str) -> None:
            is_error = severity in (severities.ERROR, severities.INTERNAL_ERROR)
            for messages in self.kept:
                messages.lines.append(message)
                if is_error:
                    messages.errors.append(message)
                elif severity == severities.WARNING:
                    messages.warnings.append(message)

    return KeepingLogger()
