"""Which of the processes of a launcher this is, known without torch."""

import os

__all__ = ["is_main_process", "process_count"]


def is_main_process() -> bool:
    """Whether this process is the only one, or the first of those that `torchrun` or `accelerate launch` started."""
    return os.environ.get("RANK", "0") == "0"


def process_count() -> int:
    """How many processes `torchrun` or `accelerate launch` started; 1 without them."""
    count = os.environ.get("WORLD_SIZE", "1")
    return int(count) if count.isdecimal() else 1
