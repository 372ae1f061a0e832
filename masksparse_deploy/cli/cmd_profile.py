"""masksparse profile."""

from collections.abc import Sequence
from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render_profile import profile_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.artifacts.timing import EngineRole
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("profile")
@input_option("--dense", "dense.engine.json, written by 'masksparse build'.")
@input_option("--sparse", "sparse.engine.json, written by 'masksparse build'.")
@input_option("--dense-onnx", "The file the dense engine was built from; with it, several builds (TensorRT).", required=False)
@input_option("--sparse-onnx", "The file the sparse engine was built from, likewise.", required=False)
@with_test_samples
@with_options(EngineOptions, "engine_options", only=("batch", "threads"))
@with_options(ProfileOptions, "profile_options")
@output_option("The report, a JSON file; further builds go into the folder builds beside it.")
@json_option
def command(
    dense: Path,
    sparse: Path,
    dense_onnx: Path | None,
    sparse_onnx: Path | None,
    samples: Samples,
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    out: Path,
    as_json: bool,
) -> int:
    """Time the sparse engine against its dense twin, interleaved in one process; exit code 1 for an invalid run.

    With the two ONNX files, and TensorRT, three engines are timed, several builds of each: dense, and the sparse file with
    sparse tactics forbidden and allowed. Builds that are there are kept.
    """
    from masksparse_deploy.profiling.builds import BUILDS, provide_builds
    from masksparse_deploy.profiling.compare import profile_builds

    builds: dict[EngineRole, Sequence[Path]] = {"dense": (dense,), "sparse": (sparse,)}
    with shown_progress() as progress:
        if dense_onnx is not None and sparse_onnx is not None:
            folder, count = out.parent / BUILDS, profile_options.builds
            builds = provide_builds(dense, sparse, dense_onnx, sparse_onnx, folder, count=count, progress=progress)
        elif dense_onnx is not None or sparse_onnx is not None:
            given, missing = ("--dense-onnx", "--sparse-onnx") if sparse_onnx is None else ("--sparse-onnx", "--dense-onnx")
            raise UsageError(f"{given} was given without {missing}: give both files for several builds, or none")
        report = profile_builds(builds, samples.images, engine_options, profile_options, progress=progress)
    report.write(out)
    emit(report, as_json, *profile_lines(report))
    return 1 if report.invalid_because else 0
