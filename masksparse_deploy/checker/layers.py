"""The layer bounds of a certificate, each figure computed again."""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.compare import above, equal
from masksparse_deploy.checker.document import LayerRecord
from masksparse_deploy.checker.findings import Finding, verdict
from masksparse_deploy.checker.network import attributes_of
from masksparse_deploy.checker.norms import Geometry, Norm, convolution_norm, matrix_norm
from masksparse_deploy.checker.pair import Pair
from masksparse_deploy.checker.rules import NoRuleError

__all__ = ["LayerNorms", "Which", "check_layer", "check_layer_list"]

Array = npt.NDArray[Any]
Which = Literal["dense", "sparse", "difference", "removed"]


class LayerNorms:
    """Norms of what the layers of the two files multiply by, each computed once."""

    def __init__(self, pair: Pair, shapes: Mapping[str, tuple[int, ...]], grid: int) -> None:
        self._pair = pair
        self._shapes = shapes
        self._grid = grid
        self._known: dict[tuple[bytes, str], Norm] = {}

    def norm(self, node: onnx.NodeProto, which: Which) -> Norm:
        """The bound for one layer; raises NoRuleError where there is none, KeyError where its input's shape is not known."""
        dense, sparse = self._pair.weights(node)
        weights: Mapping[Which, Callable[[], Array]] = {
            "dense": lambda: dense,
            "sparse": lambda: sparse,
            "difference": lambda: dense - sparse,
            "removed": lambda: np.where(sparse != 0, 0.0, dense),
        }
        weight = weights[which]()
        key = (weight.tobytes(), node.name)
        if key not in self._known:
            self._known[key] = self._norm(node, weight)
        return self._known[key]

    def _norm(self, node: onnx.NodeProto, weight: Array) -> Norm:
        attributes = attributes_of(node)
        if node.op_type == "Conv":
            return convolution_norm(weight, self._geometry(attributes, self._shapes[node.input[0]][1:], weight.shape[2:]))
        if node.op_type not in ("Gemm", "MatMul") or weight.ndim != 2 or attributes.get("transA", 0):
            raise NoRuleError(f"{node.op_type} with a weight of {weight.ndim} dimensions or a transposed input")
        norm = matrix_norm(weight)
        return Norm(value=abs(attributes.get("alpha", 1.0)) * norm.value, methods=norm.methods)

    def _geometry(self, attributes: Mapping[str, Any], size: tuple[int, ...], taps: tuple[int, ...]) -> Geometry:
        strides = tuple(attributes.get("strides") or (1,) * len(taps))
        dilations = tuple(attributes.get("dilations") or (1,) * len(taps))
        pads = attributes.get("pads") or (0,) * (2 * len(taps))
        added = [pads[axis] + pads[axis + len(taps)] for axis in range(len(taps))]
        if attributes.get("auto_pad", "NOTSET") == "VALID":
            added = [0] * len(taps)
        elif attributes.get("auto_pad", "NOTSET") != "NOTSET":  # SAME: as much as ceil(length / stride) outputs need
            reach = [(count - 1) * dilation + 1 for count, dilation in zip(taps, dilations, strict=True)]
            added = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
        return Geometry(
            strides=strides,
            dilations=dilations,
            padded=[length + more for length, more in zip(size, added, strict=True)],
            groups=int(attributes.get("group", 1)),
            grid=self._grid,
        )


def check_layer_list(recorded: tuple[LayerRecord, ...], pair: Pair) -> list[Finding]:
    """Whether the layers listed are those that differ between the files or are annotated, in graph order."""
    expected = [node.name for node in pair.masked_layers()]
    found = [layer.node for layer in recorded]
    if found == expected:
        return [Finding(subject="layers", what=f"all {len(expected)} that differ or are annotated", status="verified")]
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    reasons = [f"{', '.join(missing)} left out"] * bool(missing) + [
        f"{', '.join(extra)} neither differ nor are annotated"
    ] * bool(extra)
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


def check_layer(recorded: LayerRecord, pair: Pair, shapes: Mapping[str, tuple[int, ...]], norms: LayerNorms) -> list[Finding]:
    """Every figure and name of one entry; it must be one of the layers that `check_layer_list` expects."""
    subject = f"layer {recorded.layer}"
    node = next((node for node in pair.masked_layers() if node.name == recorded.node), None)
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
            above(subject, f"{which}_norm", getattr(recorded, f"{which}_norm"), norms.norm(node, which).value)
            for which in ("removed", "difference", "dense", "sparse")
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
    positions = math.prod(result[1:] if node.op_type == "Conv" else result[:-1])
    channels = result[0] if node.op_type == "Conv" else result[-1]
    return [
        *names,
        *figures,
        equal(subject, "bias_difference", recorded.bias_difference, _bias_difference(pair, node, channels)),
        equal(subject, "output_positions", recorded.output_positions, positions),
    ]


def _bias_difference(pair: Pair, node: onnx.NodeProto, channels: int) -> float:
    biases = pair.biases(node)
    if biases is None:
        return 0.0
    difference = biases[0] - biases[1]
    spread = np.broadcast_to(difference, np.broadcast_shapes(difference.shape, (channels,)))
    return float(np.sqrt(np.square(spread).sum())) * abs(float(attributes_of(node).get("beta", 1.0)))


def _unchecked(subject: str, what: str, reason: str, *, needs_images: bool = False) -> Finding:
    return Finding(subject=subject, what=what, status="not checked", reason=reason, needs_images=needs_images)
