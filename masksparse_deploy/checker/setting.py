"""The two networks with what rules need to know about them: shapes and the norms of their layers."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.checker.gates import Gates
from masksparse_deploy.checker.network import Network, attributes_of
from masksparse_deploy.checker.norms import Geometry, Norm, convolution_norm, matrix_norm
from masksparse_deploy.checker.pair import Pair
from masksparse_deploy.checker.positions import norm_at, parts_of, root_of_squares
from masksparse_deploy.checker.rules import NoRuleError, Surroundings

__all__ = ["LayerNorms", "Setting", "Which"]

Array = npt.NDArray[Any]
Which = Literal["dense", "sparse", "difference", "removed"]


class LayerNorms:
    """Norms of what the layers of the two files multiply by, each computed once."""

    def __init__(self, pair: Pair, shapes: Mapping[str, tuple[int, ...]], grid: int) -> None:
        self._pair = pair
        self._shapes = shapes
        self._grid = grid
        # by the layer's output, which no two nodes share; names they may
        self._known: dict[tuple[str, Which], Norm] = {}
        self._by_content: dict[tuple[str, bytes], Norm] = {}

    def norm(self, node: onnx.NodeProto, which: Which) -> Norm:
        """The bound for one layer; raises NoRuleError where there is none, KeyError where its input's shape is not known."""
        key = node.output[0], which
        if key not in self._known and which in ("difference", "removed") and self._pair.parts(node) is not None:
            self._known[key] = self._of_parts(node, which)
        elif key not in self._known:
            dense, sparse = self._pair.weights(node)
            weights: Mapping[Which, Array] = {
                "dense": dense,
                "sparse": sparse,
                "difference": dense - sparse,
                "removed": np.where(sparse != 0, 0.0, dense),
            }
            # what was removed is often all of the difference
            content = node.output[0], hashlib.sha256(weights[which].tobytes()).digest()
            if content not in self._by_content:
                self._by_content[content] = self._norm(node, weights[which])
            self._known[key] = self._by_content[content]
        return self._known[key]

    def _of_parts(self, node: onnx.NodeProto, which: Which) -> Norm:
        """Of what differs where positions are masked in one file or in both."""
        dense, sparse = self._pair.weights(node)
        other = np.where(sparse != 0, dense, 0.0) if which == "removed" else sparse
        size = self._shapes[node.input[0]][1:]
        norms = [
            norm_at(part.weight, part.region, self._norm(node, part.weight), self._geometry(node, size, part.weight.shape[2:]))
            for part in parts_of((dense, other), None, self._pair.masks(node))
            if part.weight.any()
        ]
        return root_of_squares(norms) if norms else self._norm(node, np.zeros_like(dense))

    def _norm(self, node: onnx.NodeProto, weight: Array) -> Norm:
        attributes = attributes_of(node)
        if node.op_type in ("Conv", "ConvTranspose"):
            return convolution_norm(weight, self._geometry(node, self._shapes[node.input[0]][1:], weight.shape[2:]))
        if node.op_type not in ("Gemm", "MatMul") or weight.ndim != 2 or attributes.get("transA", 0):
            raise NoRuleError(f"{node.op_type} with a weight of {weight.ndim} dimensions or a transposed input")
        norm = matrix_norm(weight)
        return replace(norm, value=abs(attributes.get("alpha", 1.0)) * norm.value)

    def _geometry(self, node: onnx.NodeProto, size: tuple[int, ...], taps: tuple[int, ...]) -> Geometry:
        attributes = attributes_of(node)
        strides = tuple(attributes.get("strides") or (1,) * len(taps))
        dilations = tuple(attributes.get("dilations") or (1,) * len(taps))
        pads = attributes.get("pads") or (0,) * (2 * len(taps))
        reach = [(count - 1) * dilation + 1 for count, dilation in zip(taps, dilations, strict=True)]
        added = [pads[axis] + pads[axis + len(taps)] for axis in range(len(taps))]
        if node.op_type == "ConvTranspose":  # the transpose of a convolution of its output, before any of that is cut off
            added = [(n - 1) * s + r - n for n, s, r in zip(size, strides, reach, strict=True)]
        elif attributes.get("auto_pad", "NOTSET") == "VALID":
            added = [0] * len(taps)
        elif attributes.get("auto_pad", "NOTSET") != "NOTSET":  # SAME: as much as ceil(length / stride) outputs need
            added = [max((-(-n // s) - 1) * s + r - n, 0) for n, s, r in zip(size, strides, reach, strict=True)]
        return Geometry(
            strides=strides,
            dilations=dilations,
            padded=[length + more for length, more in zip(size, added, strict=True)],
            groups=int(attributes.get("group", 1)),
            grid=self._grid,
        )


@dataclass(frozen=True, eq=False, kw_only=True)
class Setting:
    """Two networks, the shapes of their tensors for one sample, and the norms of their layers."""

    pair: Pair
    shapes: Mapping[str, tuple[int, ...]]
    norms: LayerNorms

    @cached_property
    def dense(self) -> Surroundings:
        """What rules of the dense network look at."""
        return self._around(self.pair.dense, "dense")

    @cached_property
    def sparse(self) -> Surroundings:
        """The same of the sparse one."""
        return self._around(self.pair.sparse, "sparse")

    def _around(self, network: Network, which: Any) -> Surroundings:
        return Surroundings(
            network=network,
            variables=network.variables(),
            shapes=self.shapes,
            norm=lambda node: self.norms.norm(node, which).value,
            gates=Gates(network, frozenset(node.output[0] for node in network.nodes if self.pair.differs(node))),
        )
