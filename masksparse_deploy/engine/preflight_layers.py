"""Holds the weights that NVIDIA's parser shows against the file's claims and against the file as read without the parser."""

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.any_pattern import Pattern, parse_pattern
from masksparse_deploy.core.artifacts.preflight import PreflightLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.engine.preflight_parser import ParsedLayer, ParsedNetwork
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["judge_layers"]

Array = npt.NDArray[Any]

_HARDWARE_PATTERN = NMPattern(n=2, m=4)
_INLINED = "inlined "
_NUMBER = re.compile(r"__\d+$")
_KINDS = {"Conv": "convolution", "ConvTranspose": "deconvolution", "Gemm": "matrix product", "MatMul": "matrix product"}
# Behind a Cast or DequantizeLinear the one side may round to the type of the scale where the other keeps float32; BF16 is the
# coarsest such type, with 8 bits: two roundings are apart by at most 2 * 2^-8.
_CONVERTED_TOLERANCE = 2.0**-7


def judge_layers(graph: Graph, seen: ParsedNetwork, folder: Path) -> tuple[PreflightLayer, ...]:
    """Pair the parser's layers with the file's by node, and judge each.

    Args:
        graph: the file as read without the parser.
        seen: the parser's answer.
        folder: where the weights lie that it names.

    Returns:
        The file's layers with weights in their order, then layers with weights that only the parser sees.
    """
    by_node: dict[str, list[ParsedLayer]] = defaultdict(list)
    for parsed in seen.layers:
        by_node[parsed.node].append(parsed)
        # nodes of a local function are called "node | the call of the function"
        inner, _, call = parsed.node.partition(" | ")
        if call:
            by_node[_INLINED + inner].append(parsed)
    judged: list[PreflightLayer] = []
    paired: set[int] = set()
    for layer in weighted_layers(graph):
        parsed_layer = _take(by_node, layer, paired)
        judged.append(_judge(layer, parsed_layer, folder) if parsed_layer else _unseen(layer, seen.parsed))
    rest = [parsed for parsed in seen.layers if parsed.values and id(parsed) not in paired]
    return (*judged, *(_judge_unread(parsed, folder) for parsed in rest))


def _take(by_node: Mapping[str, list[ParsedLayer]], layer: WeightedLayer, paired: set[int]) -> ParsedLayer | None:
    """The parser's next layer for a node of the file, by the names that the parser may give it."""
    names = [layer.node.name, f"node_of_{layer.node.outputs[0]}"]  # the second for a node without a name
    # inlining a function appends a number to its names
    names += [_INLINED + _NUMBER.sub("", name) for name in names]
    for name in names:
        for parsed in by_node.get(name, ()):
            if id(parsed) not in paired:
                paired.add(id(parsed))
                return parsed
    return None


def _judge(layer: WeightedLayer, parsed: ParsedLayer, folder: Path) -> PreflightLayer:
    claim = layer.node.metadata.get(PATTERN)
    if not parsed.values:
        return _row(layer.node.name, parsed, claim, agrees=False, detail=f"the parser shows no weight: {parsed.why}")
    values = np.load(folder / parsed.values, allow_pickle=False)
    difference = _difference(layer.weight, values, converted=bool(parsed.route))
    return _row(layer.node.name, parsed, claim, agrees=not difference, detail=difference, values=values)


def _judge_unread(parsed: ParsedLayer, folder: Path) -> PreflightLayer:
    values = np.load(folder / parsed.values, allow_pickle=False)
    detail = "only the parser sees this weight; the file's own claims do not reach it"
    return _row(parsed.node, parsed, None, agrees=None, detail=detail, values=values)


def _unseen(layer: WeightedLayer, everything_parsed: bool) -> PreflightLayer:
    """A layer of the file that the parser has none for, which is the parser's right only if it stopped."""
    detail = "the parser has no layer for this node" if everything_parsed else "the parser stopped before this node"
    return PreflightLayer(
        node=layer.node.name,
        kind=_KINDS.get(layer.node.op, layer.node.op),
        shape=(),
        dtype="",
        pattern=layer.node.metadata.get(PATTERN, str(_HARDWARE_PATTERN)),
        claimed=PATTERN in layer.node.metadata,
        group_count=0,
        violation_count=0,
        conforming=None,
        agrees=False if everything_parsed else None,
        detail=detail,
    )


def _row(
    node: str, parsed: ParsedLayer, claim: str | None, *, agrees: bool | None, detail: str, values: Array | None = None
) -> PreflightLayer:
    pattern, remark = _claimed_pattern(claim)
    group_count, violation_count, conforming = 0, 0, None
    if values is not None and not remark:
        group_count, violation_count, remark = _count(values, parsed.group_axis, pattern)
        conforming = not violation_count and not remark
        if conforming and isinstance(pattern, BlockPattern):
            remark = f"{pattern} is no 2:4: no sparse kernel computes it; 'masksparse rewrite' leaves its zeros out"
    return PreflightLayer(
        node=node,
        kind=parsed.kind,
        shape=() if values is None else values.shape,
        dtype=parsed.dtype,
        pattern=str(pattern),
        claimed=claim is not None,
        group_count=group_count,
        violation_count=violation_count,
        conforming=conforming,
        agrees=agrees,
        detail="; ".join(text for text in (remark, detail) if text),
    )


def _claimed_pattern(claim: str | None) -> tuple[Pattern, str]:
    """What the weight is held against, and what is wrong with the claim where it says nothing."""
    if claim is None:
        return _HARDWARE_PATTERN, ""
    try:
        pattern = parse_pattern(claim)
    except UsageError as error:
        return _HARDWARE_PATTERN, f"the annotation cannot be read: {error}"
    # Kernels for inference look along the input channels only.
    return (replace(pattern, transposable=False) if isinstance(pattern, NMPattern) else pattern), ""


def _count(values: Array, group_axis: int, pattern: Pattern) -> tuple[int, int, str]:
    """Groups of the pattern, those that keep too many weights, and why there are none to count."""
    channels = values.shape[group_axis]
    if isinstance(pattern, BlockPattern):
        outputs = values.shape[0 if group_axis == 1 else values.ndim - 1]
        if outputs % pattern.n or values.size == 0:
            return 0, 0, f"{outputs} output channel{'' if outputs == 1 else 's'}: not a multiple of {pattern.n}"
        shape = pattern.outputs_first(values, group_axis).shape
        return pattern.group_count(shape), pattern.count_violations(values != 0, group_axis=group_axis), ""
    if channels % pattern.m or channels == 0:
        return 0, 0, f"{channels} input channel{'' if channels == 1 else 's'}: not a multiple of {pattern.m}"
    return values.size // pattern.m, pattern.count_violations(values != 0, group_axis=group_axis), ""


def _difference(expected: Array, found: Array, *, converted: bool) -> str:
    """How the parser's weight differs from the file's; empty if it doesn't."""
    # one-dimensional convolutions and batches of products get axes of length 1
    lengths = tuple(tuple(length for length in array.shape if length != 1) for array in (expected, found))
    if lengths[0] != lengths[1]:
        return f"the parser's weight has shape {found.shape}, the file's {expected.shape}"
    ours, theirs = (array.reshape(-1).astype(np.float64) for array in (expected, found))
    if not converted and expected.dtype == np.float64:
        ours = ours.astype(np.float32)  # the parser computes float64 files in float32
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if converted:
        with np.errstate(invalid="ignore"):  # infinities that are equal are the same already
            close = np.abs(ours - theirs) <= _CONVERTED_TOLERANCE * np.abs(ours)
        same |= close & ((ours == 0) == (theirs == 0))
    count = int((~same).sum())
    return f"{count:,} of {ours.size:,} weights are not the file's" if count else ""
