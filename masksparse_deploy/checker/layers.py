"""The layer bounds of a certificate, each figure computed again."""

import math

import numpy as np
import onnx

from masksparse_deploy.checker.compare import above, equal
from masksparse_deploy.checker.document import LayerRecord
from masksparse_deploy.checker.findings import Finding, verdict
from masksparse_deploy.checker.network import attributes_of
from masksparse_deploy.checker.pair import Pair
from masksparse_deploy.checker.rules import NoRuleError
from masksparse_deploy.checker.setting import Setting, Which

__all__ = ["check_layer", "check_layer_list"]

_FIGURES: tuple[Which, ...] = ("removed", "difference", "dense", "sparse")


def check_layer_list(recorded: tuple[LayerRecord, ...], pair: Pair) -> list[Finding]:
    """Whether the layers listed are those that differ between the files or are annotated, in graph order."""
    expected = [node.name for node in pair.masked_layers]
    found = [layer.node for layer in recorded]
    if len(set(expected)) < len(expected):  # no entry could say which of them it is about
        return [Finding(subject="layers", what="list", status="wrong", recorded=found, reason="two layers have the same name")]
    if found == expected:
        return [Finding(subject="layers", what=f"all {len(expected)} that differ or are annotated", status="verified")]
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    reasons = [f"left out: {', '.join(missing)}"] if missing else []
    reasons += [f"neither different nor annotated: {', '.join(extra)}"] if extra else []
    return [
        Finding(
            subject="layers",
            what="list",
            status="wrong",
            recorded=found,
            found=expected,
            reason="; ".join(reasons) or "repeated or in another order",
        )
    ]


def check_layer(recorded: LayerRecord, setting: Setting) -> list[Finding]:
    """Every figure and name of one entry; it must be one of the layers that `check_layer_list` expects."""
    subject, pair, shapes, norms = f"layer {recorded.layer}", setting.pair, setting.shapes, setting.norms
    node = next((node for node in pair.masked_layers if node.name == recorded.node), None)
    if node is None:
        return [Finding(subject=subject, what="node", status="wrong", recorded=recorded.node, reason="no such masked layer")]
    stored = pair.dense.stored[node.input[1]]
    names = [
        equal(subject, "initializer", recorded.initializer, stored),
        equal(subject, "layer", recorded.layer, stored.removesuffix(".weight")),
    ]
    if not {node.input[0], node.output[0]} <= shapes.keys():
        return [*names, _unchecked(subject, "figures", "the image size is not in the file", needs_images=True)]
    try:
        difference = norms.norm(node, "difference")
        figures = [
            above(subject, f"{which}_norm", getattr(recorded, f"{which}_norm"), norm.value, slack=norm.slack)
            for which, norm in ((which, norms.norm(node, which)) for which in _FIGURES)
        ]
    except NoRuleError as error:
        return [*names, _unchecked(subject, "figures", f"no independent rule for {error}")]
    figures.append(
        Finding(
            subject=subject,
            what="method",
            status=verdict(recorded.method in difference.methods),
            recorded=recorded.method,
            found=" or ".join(sorted(difference.methods)),
        )
    )
    result = shapes[node.output[0]]
    is_convolution = node.op_type in ("Conv", "ConvTranspose")
    positions = math.prod(result[1:] if is_convolution else result[:-1])
    channels = result[0] if is_convolution else result[-1]
    return [
        *names,
        *figures,
        equal(subject, "bias_difference", recorded.bias_difference, _bias_difference(pair, node, channels)),
        equal(subject, "output_positions", recorded.output_positions, positions),
    ]


def _bias_difference(pair: Pair, node: onnx.NodeProto, channels: int) -> float:
    parts = pair.parts(node)
    if parts is not None:  # the largest over positions
        return max(float(np.sqrt(np.square(part.offset).sum())) for part in parts)
    biases = pair.biases(node)
    if biases is None:
        return 0.0
    difference = biases[0] - biases[1]
    spread = np.broadcast_to(difference, np.broadcast_shapes(difference.shape, (channels,)))
    return float(np.sqrt(np.square(spread).sum())) * abs(float(attributes_of(node).get("beta", 1.0)))


def _unchecked(subject: str, what: str, reason: str, *, needs_images: bool = False) -> Finding:
    return Finding(subject=subject, what=what, status="not checked", reason=reason, needs_images=needs_images)
