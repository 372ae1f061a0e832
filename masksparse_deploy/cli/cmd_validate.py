"""masksparse validate."""

from pathlib import Path

import click

from masksparse_deploy.cli.gates import combined_gates, gates_option
from masksparse_deploy.cli.junit import JunitFile, junit_option
from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render import validate_lines, verdict_line
from masksparse_deploy.cli.render_survival import survival_table
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.config import EngineOptions, Gates
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("validate")
@input_option("--dense-engine", "dense.engine.json, written by 'masksparse build'.")
@input_option("--sparse-engine", "sparse.engine.json, written by 'masksparse build'.")
@input_option("--dense-onnx", "The file that the dense engine was built from.")
@input_option("--sparse-onnx", "The sparse file, that its engine was built from unless it was rewritten.")
@input_option("--rewritten-onnx", "rewritten.onnx, if the sparse engine was built from it.", required=False)
@input_option("--rewrite-report", "rewrite.json, written by 'masksparse rewrite'.", required=False)
@input_option("--certificate", "The certificate of the two files.")
@input_option("--probe", "probe.safetensors: outputs of the PyTorch models, written by 'masksparse bake'.", required=False)
@input_option("--bake-report", "bake.json, written by 'masksparse bake': where each layer's sparsity was seen.", required=False)
@input_option("--profile", "profile.json, written by 'masksparse profile': for --latency-ratio.", required=False)
@input_option("--dense-fp32", "The dense network before its conversion, dense.fp32.onnx of 'masksparse bake'.", required=False)
@input_option("--sparse-fp32", "The sparse one, sparse.fp32.onnx; the two tell what a precision costs.", required=False)
@with_test_samples
@gates_option
@with_options(Gates, "gates")
@with_options(EngineOptions, "engine_options", only=("batch", "threads"))
@output_option("The report, a JSON file.")
@junit_option
@json_option
def command(
    dense_engine: Path,
    sparse_engine: Path,
    dense_onnx: Path,
    sparse_onnx: Path,
    rewritten_onnx: Path | None,
    rewrite_report: Path | None,
    certificate: Path,
    probe: Path | None,
    bake_report: Path | None,
    dense_fp32: Path | None,
    sparse_fp32: Path | None,
    profile: Path | None,
    samples: Samples,
    gates_file: Path | None,
    gates: Gates,
    engine_options: EngineOptions,
    out: Path,
    junit: Path | None,
    as_json: bool,
) -> int:
    """Hold the sparse engine's outputs against reference, bound and gates; exit code 0 only for pass.

    Gates given as options win over those of the file.
    """
    from masksparse_deploy.validate.run import validate

    if (dense_fp32 is None) != (sparse_fp32 is None):
        raise UsageError("only one of --dense-fp32 and --sparse-fp32 was given; give both files, or none")
    with JunitFile(junit) as results, shown_progress() as progress:
        report = validate(
            dense_engine=dense_engine,
            sparse_engine=sparse_engine,
            dense_onnx=dense_onnx,
            sparse_onnx=sparse_onnx,
            certificate=Certificate.read(certificate),
            probe=probe,
            baked=None if bake_report is None else BakeReport.read(bake_report),
            profile=None if profile is None else ProfileReport.read(profile),
            rewrite=None if rewrite_report is None else RewriteReport.read(rewrite_report),
            rewritten_onnx=rewritten_onnx,
            unconverted=None if dense_fp32 is None or sparse_fp32 is None else (dense_fp32, sparse_fp32),
            samples=samples,
            gates=combined_gates(gates_file, gates),
            engine_options=engine_options,
            out=out.parent,
            progress=progress,
        )
        report.write(out)
        results.write(report)
    emit(report, as_json, *survival_table(report.survival), *validate_lines(report), verdict_line(report, str(out)))
    return 0 if report.verdict == "pass" else 1
