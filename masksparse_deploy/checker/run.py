"""The whole check: a certificate, the two ONNX files and, where they are at hand, the images."""

from pathlib import Path

from masksparse_deploy.checker.claims import check_claims
from masksparse_deploy.checker.compare import equal
from masksparse_deploy.checker.document import CertificateRecord, read_certificate
from masksparse_deploy.checker.findings import Finding, Report, verdict
from masksparse_deploy.checker.images import Images
from masksparse_deploy.checker.layers import check_layer, check_layer_list
from masksparse_deploy.checker.pair import Pair
from masksparse_deploy.checker.sources import Progress, Sources

__all__ = ["check", "check_record"]

_SUBJECT = "certificate"


def check(
    certificate: Path, dense: Path, sparse: Path, images: Images | None = None, *, progress: Progress | None = None
) -> Report:
    """Verify a certificate from the files it is about.

    Args:
        certificate: the JSON file.
        dense: ONNX file of the dense network.
        sparse: of the sparse one.
        images: the data set; without it what was measured on it is not checked.
        progress: called as the work goes on.

    Raises:
        UsageError: a file is missing, or the images don't fit the networks.
        DamagedError: a file is damaged.
    """
    record = read_certificate(certificate)
    return check_record(record, Sources(dense, sparse, images, progress))


def check_record(record: CertificateRecord, sources: Sources) -> Report:
    """The same for a certificate and files that were read."""
    findings = [*_identity(record, sources.pair), *_data(record, sources.images)]
    if sources.obstacle is not None:
        reason = f"they do not belong together: {sources.obstacle}"
        return Report(findings=(*findings, Finding(subject=_SUBJECT, what="files", status="wrong", reason=reason)))
    findings.append(Finding(subject=_SUBJECT, what="same graph in both files, weights apart", status="verified"))
    if record.grid >= 1:  # without a grid there is no norm
        findings += check_layer_list(record.layers, sources.pair)
        for index, layer in enumerate(record.layers):
            sources.progress("checking layers", index, len(record.layers))
            findings += check_layer(layer, sources.setting(record.grid))
        findings += check_claims(record, sources)
    return Report(findings=tuple(findings))


def _identity(record: CertificateRecord, pair: Pair) -> list[Finding]:
    """Seal and digests."""
    swapped = (
        (record.dense_sha256, record.sparse_sha256)
        == (pair.sparse.sha256, pair.dense.sha256)
        != (
            pair.dense.sha256,
            pair.sparse.sha256,
        )
    )
    found = [equal(_SUBJECT, "seal_sha256", record.seal_sha256, record.sealed_sha256)]
    for what, network in (("dense_sha256", pair.dense), ("sparse_sha256", pair.sparse)):
        same = getattr(record, what) == network.sha256
        found.append(
            Finding(
                subject=_SUBJECT,
                what=what,
                status=verdict(same),
                recorded=getattr(record, what),
                found=network.sha256,
                reason="" if same else "the two files are given in each other's place" if swapped else "another file",
            )
        )
    positive = record.grid >= 1
    reason = "" if positive else "a frequency grid has at least one point"
    found.append(Finding(subject=_SUBJECT, what="grid", status=verdict(positive), recorded=record.grid, reason=reason))
    return found


def _data(record: CertificateRecord, images: Images | None) -> list[Finding]:
    if images is None:
        return [
            Finding(subject=_SUBJECT, what="data_sha256", status="not checked", reason="needs the images", needs_images=True)
        ]
    return [equal(_SUBJECT, "data_sha256", record.data_sha256, images.sha256)]
