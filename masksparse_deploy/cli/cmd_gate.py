"""masksparse gate."""

from pathlib import Path

import click

from masksparse_deploy.cli.gates import combined_gates, gates_option
from masksparse_deploy.cli.junit import JunitFile, junit_option
from masksparse_deploy.cli.options import input_option, json_option, with_options
from masksparse_deploy.cli.render import check_lines, verdict_line
from masksparse_deploy.cli.terminal import emit
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.config import Gates
from masksparse_deploy.validate.rejudge import rejudge

__all__ = ["command"]

# The others say how to measure, which is done already.
_JUDGED = (
    "accuracy_drop_points",
    "flip_rate",
    "layerwise_violations",
    "latency_ratio",
    "sparse_layers",
    "sparse_layer_share",
    "certified_share",
    "require_interval",
)


@click.command("gate")
@input_option("--run", "Output folder of 'masksparse deploy', or one with the artifacts under the same names.")
@gates_option
@with_options(Gates, "gates", only=_JUDGED)
@junit_option
@json_option
def command(run: Path, gates_file: Path | None, gates: Gates, junit: Path | None, as_json: bool) -> int:
    """Judge a finished run by other gates, without running anything again; exit code 0 only for pass.

    Gates given as options win over those of the file. The folder is not changed.
    """
    with JunitFile(junit) as results:
        demanded, profile = combined_gates(gates_file, gates), run / "profile.json"
        report = rejudge(
            ValidationReport.read(run / "validation.json"),
            demanded,
            sparse_engine=EngineArtifact.read(run / "sparse.engine.json"),
            certificate=Certificate.read(run / "certificate.json"),
            profile=ProfileReport.read(profile) if profile.is_file() else None,
        )
        results.write(report)
    emit(report, as_json, *check_lines(report), verdict_line(report, str(run)))
    return 0 if report.verdict == "pass" else 1
