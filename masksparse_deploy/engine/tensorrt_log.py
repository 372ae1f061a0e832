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
    """Yield a logger for `trt` and what it keeps while the block runs."""
    logger = _logger(trt)
    messages, before = BuilderMessages(), logger.messages
    logger.messages = messages
    try:
        yield logger, messages
    finally:
        logger.messages = before


@functools.lru_cache(maxsize=1)
def _logger(trt: Any) -> Any:
    """One logger for the process: TensorRT sends most of what it says to the first one that it was given."""
    severities = trt.ILogger.Severity

    class KeepingLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages = BuilderMessages()

        def log(self, severity: Any, message: str) -> None:
            self.messages.lines.append(message)
            if severity in (severities.ERROR, severities.INTERNAL_ERROR):
                self.messages.errors.append(message)
            elif severity == severities.WARNING:
                self.messages.warnings.append(message)

    return KeepingLogger()
