"""Stages with the faults that fuzzing is there to find."""

import ctypes
import os
import time

import numpy as np

from masksparse_deploy.core.errors import ArtifactError
from tests.fuzz.stages import Job

__all__ = [
    "accepts_anything",
    "dies",
    "leaves_half_an_output",
    "loops",
    "raises_key_error",
    "refuses_without_a_word",
    "segfaults",
    "sleeps",
    "takes_all_memory",
    "writes_beside_the_model",
]


def accepts_anything(job: Job) -> None:
    """Takes what must be refused."""


def dies(job: Job) -> None:
    os._exit(3)


def leaves_half_an_output(job: Job) -> None:
    job.out.mkdir()
    (job.out / "sparse.onnx").write_bytes(b"half")
    raise ArtifactError("the file is damaged")


def loops(job: Job) -> None:
    sum(iter(int, 1))  # zeros for ever, on one line: where it is stopped is always the same


def raises_key_error(job: Job) -> None:
    raise KeyError(job.seed_name)


def refuses_without_a_word(job: Job) -> None:
    raise ArtifactError(" ")


def segfaults(job: Job) -> None:
    ctypes.string_at(0)


def sleeps(job: Job) -> None:
    time.sleep(3600)


def takes_all_memory(job: Job) -> None:
    np.ones(1 << 40, dtype=np.uint8)


def writes_beside_the_model(job: Job) -> None:
    (job.model.parent / "cache").write_bytes(b"")
    raise ArtifactError("the file is damaged")
