"""What is tried with a mutated file; each stage returns, raises a MasksparseError, or has found something."""

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from masksparse_deploy.bake.from_file import bake_file
from masksparse_deploy.bake.lint import lint
from masksparse_deploy.cli.render import bake_lines, lint_table
from masksparse_deploy.core.artifacts.baking import BakeReport, LintReport
from masksparse_deploy.core.config import BakeOptions
from masksparse_deploy.core.errors import MasksparseError
from tests.fuzz.seeds import seed_named

__all__ = ["STAGES", "Job", "Stage", "UnsoundOutputError"]


@dataclass(frozen=True, kw_only=True)
class Job:
    """A file, the seed whose masks are baked into it, and where to."""

    model: Path
    out: Path
    seed_name: str
    precision: str


Stage = Callable[[Job], None]


class UnsoundOutputError(Exception):
    """A stage ended well, but what it wrote is not what it should be."""


def lint_file(job: Job) -> None:
    """`masksparse lint`, with everything that it prints."""
    report = lint(job.model)
    LintReport.model_validate_json(report.model_dump_json())
    _print(*lint_table(report))


def bake(job: Job) -> None:
    """`masksparse bake --onnx`, and the linter on both files that it wrote."""
    seed = seed_named(job.seed_name)
    images = np.random.default_rng(0).standard_normal(seed.input_shape, dtype=np.float32)
    options = BakeOptions.model_validate({"precision": job.precision})
    report = bake_file(job.model, seed.masks, options, out=job.out, calibration=images)
    BakeReport.model_validate_json(report.model_dump_json())
    _print(*bake_lines(report))
    for name in ("dense.onnx", "sparse.onnx"):
        try:
            found = lint(job.out / name)
        except MasksparseError as error:
            raise UnsoundOutputError(f"{name} was written, but cannot be read: {error}") from error
        broken = [f"{layer.node}: {layer.why}" for layer in found.layers if layer.state == "broken claim"]
        if broken or not found.ok:
            raise UnsoundOutputError(f"{name} was written, but does not hold what it says: {'; '.join(broken)}")


def _print(*parts: object) -> None:
    console = Console(file=io.StringIO(), width=120)
    for part in parts:
        console.print(part)


STAGES: Mapping[str, Stage] = {"lint": lint_file, "bake": bake}
