"""Masked positions: a Where behind a convolution that puts a constant where the file does not compute; bounds.md, section 7."""

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.norms import Geometry, Norm

__all__ = ["Masked", "Part", "norm_at", "parts_of", "root_of_squares", "taken_out"]

Array = npt.NDArray[Any]
Region = npt.NDArray[np.bool_]

# The key under which a baked file says that a Where masks positions.
_POSITIONS = "masksparse.positions"
# Where the quotients of the power method come this close, relative, or after so many steps, a certificate may stop.
_CLOSE, _STEPS = 1e-4, 200
# The norms of blocks are exact to one part in 10^8, which counts once for each step; that and more.
_BLOCKS = 1e-5


@dataclass(frozen=True, eq=False, kw_only=True)
class Masked:
    """Of a convolution's output `kept` (height, width) positions are computed; the others hold `held` (channels,), float64."""

    kept: Region
    held: Array

    def apply(self, computed: Array) -> Array:
        """What the Where gives for the convolution's output (count, channels, height, width)."""
        return np.where(self.kept, computed, self.held[:, None, None])


@dataclass(frozen=True, eq=False, kw_only=True)
class Part:
    """Positions at which the dense output minus the sparse one is weight * x + offset; float64, `offset` (channels,)."""

    weight: Array
    offset: Array
    region: Region


def taken_out(
    nodes: Sequence[onnx.NodeProto], constants: Mapping[str, Array], outputs: Iterable[str]
) -> tuple[list[onnx.NodeProto], dict[str, Masked]]:
    """The nodes without annotated Where operators of the documented form, and the masks by the name of their output.

    A convolution then gives the tensor behind its Where. An operator of any other form stays, so that it makes another graph of
    the file, or has no rule.
    """
    reads = Counter(name for node in nodes for name in _read(node))
    reads.update(outputs)
    convolutions = {node.output[0]: node for node in nodes if node.op_type == "Conv" and not node.domain}
    masks, behind = {}, {}
    for node in nodes:
        masked = _masked(node, constants, convolutions)
        if masked is not None and reads[node.input[1]] == 1:
            masks[node.output[0]] = masked
            behind[node.input[1]] = node.output[0]
    kept: list[onnx.NodeProto] = []
    for node in nodes if masks else ():
        if node.output and node.output[0] in masks:
            continue
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        for place, name in enumerate(copy.output):
            copy.output[place] = behind.get(name, name)
        kept.append(copy)
    return (kept if masks else list(nodes)), masks


def _read(node: onnx.NodeProto) -> list[str]:
    """What a node reads, in the bodies of an If, Loop or Scan, too."""
    bodies = [body for attribute in node.attribute for body in (attribute.g, *attribute.graphs)]
    inside = [name for body in bodies for inner in body.node for name in _read(inner)]
    return [*node.input, *inside, *(value.name for body in bodies for value in body.output)]


def _masked(node: onnx.NodeProto, constants: Mapping[str, Array], convolutions: Mapping[str, onnx.NodeProto]) -> Masked | None:
    if node.op_type != "Where" or node.domain or not any(entry.key == _POSITIONS for entry in node.metadata_props):
        return None
    condition, computed, other = node.input
    if computed not in convolutions or condition not in constants or other not in constants:
        return None
    kept, held, weight = constants[condition], constants[other], constants.get(convolutions[computed].input[1])
    if weight is None or weight.ndim != 4 or held.shape != (1, len(weight), 1, 1):
        return None
    if kept.dtype != np.bool_ or kept.ndim != 4 or kept.shape[:2] != (1, 1):
        return None
    return Masked(kept=kept[0, 0], held=held.astype(np.float64).reshape(-1))


def parts_of(
    weights: tuple[Array, Array], biases: tuple[Array, Array] | None, masks: tuple[Masked | None, Masked | None]
) -> list[Part]:
    """What the two outputs of a layer differ by, region by region; regions without a position are left out.

    Args:
        weights: of the dense and the sparse layer.
        biases: likewise; None where there are none.
        masks: likewise; None where all positions are computed.
    """
    kernel, other = weights
    size = next(masked.kept.shape for masked in masks if masked is not None)
    nothing = np.zeros(len(kernel))
    bias, other_bias = biases or (nothing, nothing)
    here, there = (np.ones(size, dtype=np.bool_) if masked is None else masked.kept for masked in masks)
    held, other_held = (nothing if masked is None else masked.held for masked in masks)
    found = (
        Part(weight=kernel - other, offset=bias - other_bias, region=here & there),
        Part(weight=kernel, offset=bias - other_held, region=here & ~there),
        Part(weight=-other, offset=held - other_bias, region=there & ~here),
        Part(weight=np.zeros_like(kernel), offset=held - other_held, region=~(here | there)),
    )
    return [part for part in found if part.region.any()]


def root_of_squares(norms: Sequence[Norm]) -> Norm:
    """Of an operator whose outputs at different positions have these norms."""
    methods = [" + ".join(dict.fromkeys(chosen)) for chosen in itertools.product(*(sorted(norm.methods) for norm in norms))]
    return Norm(
        value=math.sqrt(sum(norm.value**2 for norm in norms)),
        methods=frozenset(methods),
        slack=max(norm.slack for norm in norms) + 1e-12,
    )


def norm_at(weight: Array, region: Region, everywhere: Norm, geometry: Geometry) -> Norm:
    """The smaller of the norm for all positions and of bound (d) for those of `region`."""
    if region.all() or math.prod(weight.shape[2:]) == 1:
        return everywhere
    here = _by_neighbours(weight, region, geometry)
    value, slack = min(here.value, everywhere.value), max(here.slack, everywhere.slack)
    methods = [norm for norm in (here, everywhere) if norm.value <= value * (1 + slack)]
    return Norm(
        value=value, methods=frozenset().union(*(norm.methods for norm in methods)), slack=max(norm.slack for norm in methods)
    )


def _by_neighbours(weight: Array, region: Region, geometry: Geometry) -> Norm:
    """Bound (d): root of the largest eigenvalue of the matrix of the norms of what pairs of positions have in common."""
    places = np.argwhere(region)
    reach = [max(weight.shape[2:]) * max(geometry.dilations)] * 2  # no offset is larger
    numbers = np.full([length + 2 * more for length, more in zip(region.shape, reach, strict=True)], len(places))
    numbers[tuple((places + reach).T)] = np.arange(len(places))
    neighbours = [
        (size, numbers[tuple((places + reach + offset).T)]) for offset, size in _norms_in_common(weight, geometry).items()
    ]
    x = np.append(np.ones(len(places)), 0.0)  # the last stands for every position that is not in the region
    low, high = 0.0, math.inf
    for _ in range(_STEPS):
        y = np.append(sum((size * x[numbers] for size, numbers in neighbours), np.zeros(len(places))), 0.0)
        low = max(low, float(x @ y) / float(x @ x))
        high = min(high, float((y[:-1] / x[:-1]).max()))
        x = y / y.max()
    slack = max(_CLOSE, high / low - 1) / 2 + _BLOCKS
    return Norm(value=math.sqrt(low), methods=frozenset({"positions"}), slack=slack)


def _norms_in_common(weight: Array, geometry: Geometry) -> dict[tuple[int, ...], float]:
    """By offset of two output positions the norm of the sum of K_t K_u^T over their taps t and u at the same input."""
    products: dict[tuple[int, ...], Array] = {}
    parts = np.split(weight, geometry.groups)
    taps = list(itertools.product(*(range(length) for length in weight.shape[2:])))
    for tap, other in itertools.product(taps, taps):
        apart = [d * (t - u) for t, u, d in zip(tap, other, geometry.dilations, strict=True)]
        if any(distance % stride for distance, stride in zip(apart, geometry.strides, strict=True)):
            continue
        offset = tuple(distance // stride for distance, stride in zip(apart, geometry.strides, strict=True))
        product = np.stack([part[:, :, tap[0], tap[1]] @ part[:, :, other[0], other[1]].T for part in parts])
        products[offset] = products[offset] + product if offset in products else product
    return {offset: float(np.linalg.svd(matrices, compute_uv=False).max()) for offset, matrices in products.items()}
