"""masksparse update."""

import sys
from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options
from masksparse_deploy.cli.render import stage_row, verdict_line
from masksparse_deploy.cli.render_update import compare_lines, masks_line, update_lines
from masksparse_deploy.cli.stage_lines import stage_lines
from masksparse_deploy.cli.terminal import console, emit, shown_progress
from masksparse_deploy.core.artifacts.updating import UpdateReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.config import UpdateOptions
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.pipeline.reporting import UPDATE
from masksparse_deploy.pipeline.run import StageResult, run_chain
from masksparse_deploy.pipeline.updating import Update

__all__ = ["command"]


@click.command("update")
@click.argument("config", type=click.Path(path_type=Path))
@input_option("--weights", "The new checkpoint of the same network: .safetensors, or .pth.")
@input_option("--run", "Output folder of the finished run of CONFIG.  [default: that of the configuration]", required=False)
@with_options(UpdateOptions, "options")
@output_option("Folder for the new files; the old run is left as it is.")
@json_option
def command(config: Path, weights: Path, run: Path | None, options: UpdateOptions, out: Path, as_json: bool) -> int:
    """Put new weights under the masks of a finished run of CONFIG, and say what is still guaranteed.

    Nothing is learned. The masks are baked into the new weights, engines are built, timed, certified and validated. Exit code
    0 only where the new sparse engine passes. An interrupted update goes on where it stopped.
    """
    settings = read_config(config)
    before = Job(
        config=settings,
        folder=config.parent,
        out=run or Path(settings.out),
        command=" ".join(["masksparse", *sys.argv[1:]]),
        config_text=config.read_text(encoding="utf-8"),
    )
    update = Update(before=before, weights=weights, out=out, options=options)
    update.check()
    terminal = console()

    def show(result: StageResult) -> None:
        if as_json or result.stage == "report":
            return
        lines = _lines(update, result.stage) if result.status == "done" else ["unchanged"]
        terminal.print(stage_row(result.stage, lines, result.seconds))

    with shown_progress() as progress:
        run_chain(update.job, stages=update.stages, on_result=show, progress=progress)
    verdict = ValidationReport.read(out / "validation.json")
    emit(UpdateReport.read(out / UPDATE), as_json, verdict_line(verdict, str(out / "report.html")))
    return 0 if verdict.verdict == "pass" else 1


def _lines(update: Update, stage: str) -> list[str]:
    if stage == "masks":
        return [masks_line(update.masks, update.statistics)]
    if stage == "compare":
        return compare_lines(update.job.out)
    if stage == "update":
        return update_lines(UpdateReport.read(update.out / UPDATE))
    return stage_lines(update.job, stage)
