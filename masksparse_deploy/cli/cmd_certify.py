"""masksparse certify."""

from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, output_option, with_options, with_test_samples
from masksparse_deploy.cli.render import certify_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("certify")
@input_option("--dense", "dense.onnx, written by 'masksparse bake'.")
@input_option("--sparse", "sparse.onnx, written by 'masksparse bake'.")
@with_test_samples
@with_options(CertifyOptions, "certify_options")
@output_option("The certificate, a JSON file.")
@json_option
def command(dense: Path, sparse: Path, samples: Samples, certify_options: CertifyOptions, out: Path, as_json: bool) -> None:
    """Prove how far masking can move the outputs."""
    from masksparse_deploy.certify.run import certify

    with shown_progress() as progress:
        certificate = certify(dense, sparse, samples, certify_options, progress=progress)
    certificate.write(out)
    emit(certificate, as_json, *certify_lines(certificate))
