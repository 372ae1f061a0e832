"""Which of the processes of a launcher this is, known without torch."""

import os

__all__ = ["is_main_process"]


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"
