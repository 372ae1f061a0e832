"""masksparse preflight."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import json_option
from masksparse_deploy.cli.render_preflight import preflight_table
from masksparse_deploy.cli.terminal import emit, shown_progress

__all__ = ["command"]


@click.command("preflight")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--build", is_flag=True, help="Also build an engine ahead of time, which finds what parsing alone does not.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=1), default=300, show_default=True, help="Seconds the parser may take."
)
@json_option
def command(file: Path, build: bool, timeout_s: float, as_json: bool) -> int:
    """Let NVIDIA's parser read an ONNX FILE on the CPU, and hold what it sees against the file.

    Exit code 0 only if everything was parsed and every claim of sparsity holds for the weights that the parser shows. It is a
    check of parsing: it tells neither which kernels TensorRT will choose on a GPU nor how fast they are.
    """
    from masksparse_deploy.engine.preflight import preflight

    with shown_progress() as progress:
        report = preflight(file, build=build, timeout_s=timeout_s, progress=progress)
    emit(report, as_json, *preflight_table(report))
    return 0 if report.ok else 1
