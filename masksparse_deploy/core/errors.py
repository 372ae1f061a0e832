"""Every error a user can cause or meet, each with the exit code that the command line documents.

Exit codes: 0 done or pass, 1 the answer is no, 2 usage, 3 the machine lacks something, 4 an artifact is damaged or stale.
"""

__all__ = [
    "ArtifactError",
    "MachineError",
    "MasksparseError",
    "OutputError",
    "UsageError",
]


class MasksparseError(Exception):
    """Base of all errors with a message meant for the user: what, which value, what would be right, what to do."""

    exit_code = 2


class UsageError(MasksparseError):
    """A command, configuration or input that cannot work as given (exit code 2)."""

    exit_code = 2


class MachineError(MasksparseError):
    """The machine lacks a package, a device, a permission or disk space (exit code 3)."""

    exit_code = 3


class OutputError(MachineError):
    """An output could not be written; nothing was left half-written (exit code 3)."""


class ArtifactError(MasksparseError):
    """A file is damaged, or does not belong to the other files it is used with (exit code 4)."""

    exit_code = 4
