"""masksparse sweep."""

import re
from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render_sweep import sweep_table
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.artifacts.sweeping import SweepReport
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]

ENGINE_FIELDS = ("backend", "threads", "workspace_mib", "tactic_sources", "optimization_level")


@click.command("sweep")
@input_option("--dense", "dense.onnx, written by 'masksparse bake'.")
@input_option("--sparse", "sparse.onnx, or rewritten.onnx.")
@click.option("--batches", required=True, help="Images in a batch, several with commas: 1,8,32.")
@click.option("--images", "sizes", default="", help="HEIGHTxWIDTH, several with commas.  [default: that of the files]")
@with_test_samples
@with_options(EngineOptions, "engine_options", only=ENGINE_FIELDS)
@with_options(ProfileOptions, "profile_options")
@click.option("--plot", type=click.Path(path_type=Path), help="Also draw speedup against batch size, into this HTML file.")
@output_option("The report, a JSON file; engines go into the folder sweep beside it.")
@json_option
def command(
    dense: Path,
    sparse: Path,
    batches: str,
    sizes: str,
    samples: Samples,
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    plot: Path | None,
    out: Path,
    as_json: bool,
) -> int:
    """Speedup against batch and image size; exit code 1 where a point is invalid.

    An interrupted sweep goes on where it stopped, and more points may be added later: those that are in the report, of the
    same files, machine and options, are not timed again.
    """
    from masksparse_deploy.engine.select import choose_backend
    from masksparse_deploy.profiling.sweep import sweep, sweep_points
    from masksparse_deploy.report.sweep_plot import write_sweep_page

    points = sweep_points(dense, _integers(batches), _sizes(sizes))
    backend, _ = choose_backend(engine_options.backend)
    with shown_progress() as progress:
        report = sweep(
            dense,
            sparse,
            points,
            samples.images,
            backend,
            engine_options,
            profile_options,
            out.parent / "sweep",
            known=SweepReport.read(out) if out.is_file() else None,
            on_report=lambda found: found.write(out),
            progress=progress,
        )
    report.write(out)
    if plot is not None:
        write_sweep_page(plot, report, sparse.stem)
    emit(report, as_json, *sweep_table(report))
    return 1 if any(point.invalid_because for point in report.points) else 0


def _integers(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"[1-9]\d*", part) for part in parts):
        raise UsageError(f"--batches is {text!r}: write positive numbers with commas between them, as 1,8,32")
    return [int(part) for part in parts]


def _sizes(text: str) -> list[tuple[int, int]]:
    parts = [part.strip() for part in text.split(",")] if text else []
    if not all(re.fullmatch(r"[1-9]\d*x[1-9]\d*", part) for part in parts):
        raise UsageError(f"--images is {text!r}: write sizes as HEIGHTxWIDTH with commas between them, as 160x160,224x224")
    pairs = [part.split("x") for part in parts]
    return [(int(height), int(width)) for height, width in pairs]
