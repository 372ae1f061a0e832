"""masksparse profile."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render import profile_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("profile")
@input_option("--dense", "dense.engine.json, written by 'masksparse build'.")
@input_option("--sparse", "sparse.engine.json, written by 'masksparse build'.")
@with_test_samples
@with_options(EngineOptions, "engine_options", only=("batch", "threads"))
@with_options(ProfileOptions, "profile_options")
@output_option("The report, a JSON file.")
@json_option
def command(
    dense: Path,
    sparse: Path,
    samples: Samples,
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    out: Path,
    as_json: bool,
) -> int:
    """Time the sparse engine against its dense twin, interleaved in one process; exit code 1 for an invalid run."""
    from masksparse_deploy.profiling.compare import profile_pair

    with shown_progress() as progress:
        report = profile_pair(dense, sparse, samples.images, engine_options, profile_options, progress=progress)
    report.write(out)
    emit(report, as_json, *profile_lines(report))
    return 1 if report.invalid_because else 0
