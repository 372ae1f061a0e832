"""masksparse deploy."""

import sys
from pathlib import Path

import click

from masksparse_deploy.cli.junit import JunitFile, junit_option
from masksparse_deploy.cli.options import json_option
from masksparse_deploy.cli.render import stage_row, verdict_line
from masksparse_deploy.cli.stage_lines import stage_lines
from masksparse_deploy.cli.terminal import console, emit, shown_progress
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.launch import process_count
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.run import StageResult, run_chain
from masksparse_deploy.pipeline.stages import STAGES
from masksparse_deploy.report.junit import StageTime

__all__ = ["command"]


@click.command("deploy")
@click.argument("config", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Output folder.  [default: that of the configuration]")
@click.option("--until", type=click.Choice([stage.name for stage in STAGES]), help="Stop after this stage, without a verdict.")
@junit_option
@json_option
def command(config: Path, out: Path | None, until: str | None, junit: Path | None, as_json: bool) -> int:
    """Run the whole chain of CONFIG, a YAML file, and give the verdict; exit code 0 only for pass.

    Stages whose inputs have not changed are not run again; an interrupted run goes on where it stopped.
    """
    if process_count() > 1:
        raise UsageError(
            f"masksparse deploy runs in one process, and a launcher started {process_count()}; under the launcher run "
            "'masksparse learn', then the other stages ('masksparse bake' and so on) without it"
        )
    if junit is not None and until not in (None, STAGES[-1].name):
        raise UsageError(f"--junit writes the checks behind the verdict, and --until {until} gives none; leave one of them out")
    options = read_config(config)
    arguments = " ".join(["masksparse", *sys.argv[1:]])
    job = Job(
        config=options,
        folder=config.parent,
        out=out or Path(options.out),
        command=arguments,
        config_text=config.read_text(encoding="utf-8"),
    )
    terminal = console()

    def show(result: StageResult) -> None:
        if as_json or result.stage == "report":
            return
        lines = stage_lines(job, result.stage) if result.status == "done" else ["unchanged"]
        terminal.print(stage_row(result.stage, lines, result.seconds))

    with JunitFile(junit) as checks, shown_progress() as progress:
        results = run_chain(job, until=until, on_result=show, progress=progress)
        if len(results) < len(STAGES):
            return 0
        report = ValidationReport.read(job.out / "validation.json")
        checks.write(report, [StageTime(result.stage, result.seconds, result.status) for result in results])
    emit(report, as_json, verdict_line(report, str(job.out / "report.html")))
    return 0 if report.verdict == "pass" else 1
