"""What keeps the checker from checking at all, with the exit code of the command line."""

__all__ = ["CheckerError", "DamagedError", "UsageError"]


class CheckerError(Exception):
    """Base of both, with a message meant for the user."""

    exit_code = 2


class UsageError(CheckerError):
    """A path or the images cannot be used as given (exit code 2)."""


class DamagedError(CheckerError):
    """A file is not what its name promises, or is damaged (exit code 4)."""

    exit_code = 4
