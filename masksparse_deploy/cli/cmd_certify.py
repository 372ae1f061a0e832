"""masksparse certify."""

import functools
from pathlib import Path

import click

from masksparse_deploy.cli.options import input_option, json_option, with_options, with_test_samples
from masksparse_deploy.cli.render import certify_lines
from masksparse_deploy.cli.terminal import emit, shown_progress
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.samples import Samples

__all__ = ["command"]


@click.command("certify")
@input_option("--dense", "dense.onnx, written by 'masksparse bake'.")
@input_option("--sparse", "sparse.onnx, written by 'masksparse bake'.")
@functools.partial(with_test_samples, required=False)
@with_options(CertifyOptions, "certify_options")
@click.option("--out", type=click.Path(path_type=Path), help="The certificate, a JSON file.")
@input_option("--check", "Prove nothing, but verify this certificate by other code; --data is optional then.", required=False)
@json_option
def command(
    dense: Path,
    sparse: Path,
    samples: Samples | None,
    certify_options: CertifyOptions,
    out: Path | None,
    check: Path | None,
    as_json: bool,
) -> int:
    """Prove how far masking can move the outputs, or check such a proof; exit code 1 when it does not hold."""
    if check is not None:
        if out is not None or certify_options != CertifyOptions():
            raise UsageError("--check writes no file and takes grid and samples from the certificate: leave their options out")
        return _check(check, dense, sparse, samples, as_json)
    if samples is None or out is None:
        raise UsageError(f"{'--data' if samples is None else '--out'} is missing: only --check does without it")
    from masksparse_deploy.pipeline.norms import write_certificate

    def remark(text: str) -> None:
        click.echo(text, err=True)

    with shown_progress() as progress:
        certificate = write_certificate(dense, sparse, samples, certify_options, out=out, remark=remark, progress=progress)
    emit(certificate, as_json, *certify_lines(certificate))
    return 0


def _check(certificate: Path, dense: Path, sparse: Path, samples: Samples | None, as_json: bool) -> int:
    from masksparse_deploy.checker.errors import CheckerError, DamagedError
    from masksparse_deploy.checker.images import Images
    from masksparse_deploy.checker.run import check

    images = None if samples is None else Images(images=samples.images, labels=samples.known_labels)
    try:
        with shown_progress() as progress:
            report = check(certificate, dense, sparse, images, progress=progress)
    except CheckerError as error:
        kind = ArtifactError if isinstance(error, DamagedError) else UsageError
        raise kind(str(error)) from error
    click.echo(report.to_json() if as_json else "\n".join(report.lines()))
    return report.exit_code
