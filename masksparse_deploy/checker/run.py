"""The whole check: a certificate, the two ONNX files and, where they are at hand, the images."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from masksparse_deploy.checker.claims import ORDER, Evidence, check_claim, check_smallest
from masksparse_deploy.checker.compare import NORM_SLACK, equal
from masksparse_deploy.checker.document import CertificateRecord, read_certificate
from masksparse_deploy.checker.errors import UsageError
from masksparse_deploy.checker.findings import Finding, Report, Status, verdict
from masksparse_deploy.checker.images import Images
from masksparse_deploy.checker.layers import LayerNorms, Which, check_layer, check_layer_list
from masksparse_deploy.checker.network import Network, is_floating, read_network, shapes_of
from masksparse_deploy.checker.pair import Pair, structural_difference
from masksparse_deploy.checker.recursion import Setting, missing_rules
from masksparse_deploy.checker.rules import NoRuleError
from masksparse_deploy.checker.samples import Propagated, propagate

__all__ = ["Progress", "check"]

# What is being done, how much of it is done, and how much there is.
Progress = Callable[[str, int, int], None]

_SUBJECT = "certificate"
# docs/bounds.md enlarges bounds by 1e-9 at each node; as much again for the rounding of both sides.
_NODE_SLACK = 2e-9
# The norms of a layer that the recursions use.
_NORMS: tuple[Which, ...] = ("dense", "sparse", "difference")


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
    pair = Pair(dense=read_network(dense), sparse=read_network(sparse))
    findings = [*_identity(record, pair), *_data(record, images)]
    difference = structural_difference(pair) or _unusable(pair)
    if difference is not None:
        wrong = Finding(subject=_SUBJECT, what="files", status="wrong", reason=f"they do not belong together: {difference}")
        return Report(findings=(*findings, wrong))
    findings.append(Finding(subject=_SUBJECT, what="same graph in both files, weights apart", status="verified"))
    shapes = shapes_of(pair.dense, _image_shape(pair.dense, images))
    setting = Setting(pair=pair, shapes=shapes, norms=LayerNorms(pair, shapes, record.grid))
    findings += check_layer_list(record.layers, pair)
    for index, layer in enumerate(record.layers):
        if progress is not None:
            progress("checking layers", index, len(record.layers))
        findings += check_layer(layer, setting.pair, shapes, setting.norms)
    findings += _claims(record, setting, images, progress)
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


def _claims(record: CertificateRecord, setting: Setting, images: Images | None, progress: Progress | None) -> list[Finding]:
    findings = [equal(_SUBJECT, "names of the claims", tuple(claim.name for claim in record.claims), ORDER)]
    if findings[0].status == "wrong":  # each name decides what is checked
        return findings
    findings += [check_smallest(record), *_unsupported(record, setting)]
    run, obstacle = _run(record, setting, images, progress)
    evidence = Evidence(
        certificate=record, setting=setting, images=images, run=run, factor=_factor(record, setting), obstacle=obstacle
    )
    for claim in record.claims:
        findings += check_claim(claim, evidence)
    return findings


def _unsupported(record: CertificateRecord, setting: Setting) -> list[Finding]:
    """Whether there is really no rule for what is called unsupported, and one for everything else."""
    missing = missing_rules(setting)
    operators = {node.op_type for node in setting.pair.dense.nodes} | {node.domain for node in setting.pair.dense.nodes}
    foreign = [name for name in record.unsupported if name.replace(".", " ").split(" ")[0] not in operators]
    status: Status = "verified"
    reason = ""
    if foreign or (record.unsupported and not missing):
        status, reason = (
            "wrong",
            f"not in the network: {', '.join(foreign)}" if foreign else "there is a rule for every operator",
        )
    elif record.unsupported != tuple(sorted(missing)):
        status, reason = "not checked", f"no independent rule for {', '.join(sorted(missing))}"
    return [
        Finding(
            subject=_SUBJECT,
            what="unsupported",
            status=status,
            recorded=list(record.unsupported),
            found=sorted(missing),
            reason=reason,
        )
    ]


def _run(
    record: CertificateRecord, setting: Setting, images: Images | None, progress: Progress | None
) -> tuple[Propagated | None, str]:
    """The recursions on as many samples as the claims are about, or why there are none."""
    if images is None:
        return None, ""
    if images.sha256 != record.data_sha256:
        return None, "the images are not those of the certificate"
    counts = {claim.sample_count for claim in record.claims if claim.sample_count is not None}
    if any(not 1 <= count <= len(images.images) for count in counts):
        return None, f"it is about {max(counts)} samples, and the data set has {len(images.images)}"
    count = max(counts, default=1)
    try:
        return propagate(setting, images.images[:count], progress=progress), ""
    except NoRuleError as error:
        return None, f"no independent rule for {error}"
    except KeyError as error:
        return None, f"the shape of {error} cannot be told"


def _factor(record: CertificateRecord, setting: Setting) -> float:
    """How much larger the certificate's bounds may be than the checker's, because its norms are.

    Every bound is a sum of products in which the norm of each layer, dense, sparse or of their difference, occurs at most once.
    So it is at most multiplied by the product of what these norms are multiplied by. A recorded norm counts as it is recorded.
    """
    recorded = {layer.node: layer for layer in record.layers}
    factor = (1 + _NODE_SLACK) ** len(setting.pair.dense.nodes)
    for node in setting.pair.dense.nodes:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        ratio = 1.0 + NORM_SLACK
        if node.name in recorded:
            ratio = 1.0
            for which in _NORMS:
                try:
                    own = setting.norms.norm(node, which).value
                except (NoRuleError, KeyError):
                    continue
                if own > 0:
                    ratio = max(ratio, min(getattr(recorded[node.name], f"{which}_norm") / own, 1.0 + NORM_SLACK))
        factor *= ratio
    return factor


def _unusable(pair: Pair) -> str | None:
    """What makes a pair of equal graphs unfit for a certificate."""
    network = pair.dense
    if len(network.inputs) != 1 or len(network.outputs) != 1:
        return f"{len(network.inputs)} inputs and {len(network.outputs)} outputs, where a certificate is about one of each"
    weights = {name for node in network.nodes if node.op_type != "Clip" for name in node.input}
    for side in (pair.dense, pair.sparse):
        for name in sorted(weights & side.constants.keys()):
            array = side.constants[name]
            if is_floating(array) and not np.isfinite(array.astype(np.float64)).all():
                return f"{name!r} holds NaN or infinite values in {side.path}"
    return None


def _image_shape(network: Network, images: Images | None) -> tuple[int, ...] | None:
    if images is None:
        return None
    shape, taken = images.images.shape, network.inputs[0].type.tensor_type.shape.dim
    fits = len(taken) == len(shape) and all(
        dim.dim_value in (0, length) for dim, length in zip(taken[1:], shape[1:], strict=True)
    )
    if not fits:
        wanted = ", ".join(str(dim.dim_value or "any") for dim in taken[1:])
        raise UsageError(
            f"images have the shape {shape}, the networks take (count, {wanted}); give the data of the certificate"
        )
    return tuple(shape[1:])
