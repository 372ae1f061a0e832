"""masksparse explain."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option
from masksparse_deploy.cli.render_sparse_tactics import sparse_tactics_table
from masksparse_deploy.cli.terminal import emit

__all__ = ["command"]


@click.command("explain")
@input_option("--onnx", "The ONNX file that the engine was built from.")
@input_option("--engine", "Its engine.json, written by 'masksparse build'; the builder's log is read from beside it.")
@input_option("--dense", "engine.json of the dense file, to compare in what the tactics add up.", required=False)
@input_option("--profile", "profile.json of both engines, for the times of layers.", required=False)
@click.option("--out", type=click.Path(path_type=Path), help="Also write the report to this JSON file.")
@json_option
def command(onnx: Path, engine: Path, dense: Path | None, profile: Path | None, out: Path | None, as_json: bool) -> int:
    """Which layers of an engine run sparse tactics, and why the others do not; exit code 1 for contradictions."""
    from masksparse_deploy.pipeline.explaining import explain_files

    report = explain_files(onnx, engine, dense=dense, profile=profile)
    if out is not None:
        report.write(out)
    emit(report, as_json, *sparse_tactics_table(report))
    return 1 if report.findings else 0
