"""How stages tell of their progress without knowing the terminal: a callback that the command line supplies."""

from collections.abc import Callable

__all__ = ["Progress", "silent"]

# progress(description, done, total): called whenever there is something new to show.
Progress = Callable[[str, int, int], None]


def silent(description: str, done: int, total: int) -> None:
    """Shows nothing."""
