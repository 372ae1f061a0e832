"""The claims of a certificate as a whole: which there are, on what they are held against, and what has no rule."""

import math

import onnx

from masksparse_deploy.checker import texts
from masksparse_deploy.checker.claim import Evidence, check_claim
from masksparse_deploy.checker.compare import equal
from masksparse_deploy.checker.document import CertificateRecord, LayerRecord
from masksparse_deploy.checker.findings import Finding, Status, verdict
from masksparse_deploy.checker.recursion import missing_rules
from masksparse_deploy.checker.rules import NoRuleError
from masksparse_deploy.checker.samples import HYBRID, NORMS, RESIDUALS, Propagated
from masksparse_deploy.checker.setting import Setting, Which
from masksparse_deploy.checker.sources import Sources

__all__ = ["check_claims"]

_SUBJECT = "certificate"
_ORDER = (texts.LAYERWISE, texts.DATA_FREE, NORMS, RESIDUALS, HYBRID)
# docs/bounds.md enlarges bounds by 1e-9 at each node; as much again for the rounding of both sides.
_NODE_SLACK = 2e-9
# The norms of a layer that the recursions use.
_NORMS: tuple[Which, ...] = ("dense", "sparse", "difference")


def check_claims(record: CertificateRecord, sources: Sources) -> list[Finding]:
    """All findings about claims; the files must be a pair."""
    findings = [equal(_SUBJECT, "names of the claims", tuple(claim.name for claim in record.claims), _ORDER)]
    if findings[0].status == "wrong":  # each name decides what is checked
        return findings
    setting = sources.setting(record.grid)
    findings += [_smallest(record), _same_samples(record), *_unsupported(record, sources)]
    run, obstacle = _run(record, sources)
    evidence = Evidence(
        certificate=record,
        setting=setting,
        images=sources.images,
        run=run,
        factor=_factor(record, setting),
        obstacle=obstacle,
    )
    for claim in record.claims:
        findings += check_claim(claim, evidence)
    return findings


def _smallest(certificate: CertificateRecord) -> Finding:
    """Whether `smallest` names the end-to-end claim with the smallest bound, the first of those that are equal."""
    bounds = {claim.name: claim.bound for claim in certificate.claims if claim.bound is not None}
    bounds.pop(texts.LAYERWISE, None)
    found = min(bounds, key=lambda name: bounds[name], default=None)
    return equal(_SUBJECT, "smallest", certificate.smallest, found)


def _same_samples(record: CertificateRecord) -> Finding:
    """Whether all claims that measured something did so on equally many samples, and only those name a number."""
    counts = {claim.sample_count for claim in record.claims if claim.measured is not None}
    idle = {claim.sample_count for claim in record.claims if claim.measured is None} - {None}
    consistent = len(counts) <= 1 and None not in counts and not idle
    named = [claim.sample_count for claim in record.claims]
    return Finding(
        subject=_SUBJECT,
        what="samples of the claims",
        status=verdict(consistent),
        recorded=None if consistent else named,
        reason="" if consistent else "not the same wherever something was measured",
    )


def _unsupported(record: CertificateRecord, sources: Sources) -> list[Finding]:
    """Whether there is really no rule for what is called unsupported, and one for everything else."""
    setting = sources.setting(record.grid)
    try:
        missing = missing_rules(setting)
    except KeyError as error:
        reason, needs_images = f"the shape of {error} is not in the file", sources.images is None
        return [Finding(subject=_SUBJECT, what="unsupported", status="not checked", reason=reason, needs_images=needs_images)]
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


def _run(record: CertificateRecord, sources: Sources) -> tuple[Propagated | None, str]:
    """The recursions on as many samples as the claims are about, or why there are none."""
    if sources.images is None:
        return None, ""
    if sources.images.sha256 != record.data_sha256:
        return None, "the images are not those of the certificate"
    counts = {claim.sample_count for claim in record.claims if claim.sample_count is not None}
    available = len(sources.images.images)
    if any(not 1 <= count <= available for count in counts):
        return None, f"it is about {max(counts)} samples, and the data set has {available}"
    try:
        return sources.run(record.grid, max(counts, default=1)), ""
    except NoRuleError as error:
        return None, f"no independent rule for {error}"
    except KeyError as error:
        return None, f"the shape of {error} cannot be told"


def _factor(record: CertificateRecord, setting: Setting) -> float:
    """How much larger the certificate's bounds may be than the checker's, because its norms are.

    Every bound is a sum of products in which the norm of each layer, dense, sparse or of their difference, occurs at most once
    on the way to each factor of a product of tensors. So it is at most multiplied by the product of what these norms are
    multiplied by, once and once more for each such product. A recorded norm counts as it is recorded.
    """
    recorded = {layer.node: layer for layer in record.layers}
    products = sum(setting.sparse.is_product(node) for node in setting.pair.sparse.nodes)
    factor = (1 + _NODE_SLACK) ** len(setting.pair.dense.nodes)
    for node in setting.pair.dense.nodes:
        try:
            if node.op_type in ("Conv", "Gemm", "MatMul"):
                factor *= _ratio(node, recorded.get(node.name), setting)
        except (NoRuleError, KeyError):
            continue  # such a layer has no norm, and no bound goes through it
    return float(factor ** (1 + products))


def _ratio(node: onnx.NodeProto, recorded: LayerRecord | None, setting: Setting) -> float:
    """How far recorded norms of a layer are above the checker's; how far they may be, for a layer that is not listed."""
    norms = [(setting.norms.norm(node, which), getattr(recorded, f"{which}_norm", math.inf)) for which in _NORMS]
    return max((min(value / own.value, 1 + own.slack) for own, value in norms if own.value > 0), default=1.0)
