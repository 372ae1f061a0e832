"""What every tensor of a rewritten file holds, in terms of the sparse file's tensors, and what is wrong along the way."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.graph.layers import Scope
from masksparse_deploy.graph.model import Array, Graph, Node, WeightedLayer

__all__ = ["Held", "Trace", "same_array", "same_attributes"]

CHANNEL_AXIS = 1


@dataclass(frozen=True, eq=False)
class Held:
    """Channels of a tensor of the sparse file, in an order, at every so many positions along height and width.

    `channels` None and `strides` of 1 for the tensor as it is.
    """

    tensor: str
    channels: npt.NDArray[np.int64] | None = None
    strides: tuple[int, ...] = (1, 1)

    @property
    def is_whole(self) -> bool:
        """Whether it is the tensor as it is."""
        return self.channels is None and max(self.strides) == 1


class Trace:
    """Two files, and what was found so far; readers of operators fill `held` and `findings`.

    Attributes:
        sparse: the file that says what is to be computed.
        rewritten: the file that is held against it.
        held: name of a tensor of the rewritten file -> what it holds.
        producers: name of a tensor of the sparse file -> the operator that computes it.
        findings: differences, in words.
        helpers: operators of the rewritten file whose results the sparse file does not have: tensor -> whether anything reads
            it.
        partial: tensors of the sparse file of which the rewritten one holds only some channels.
        parts: convolutions of the rewritten file of which a layer is made, by the tensor that each computes: what it reads,
            and the convolution.
    """

    def __init__(self, sparse: Graph, rewritten: Graph) -> None:
        self.sparse = sparse
        self.rewritten = rewritten
        self.held = {name: Held(name) for name in sparse.inputs}
        self.producers: Mapping[str, Node] = {name: node for node in sparse.nodes for name in node.outputs if name}
        self.findings: list[str] = []
        self.helpers: dict[str, bool] = {}
        self.partial: set[str] = set()
        self.parts: dict[str, tuple[Held, WeightedLayer]] = {}

    @cached_property
    def scopes(self) -> tuple[Scope, Scope]:
        """Of the sparse and of the rewritten file."""
        return Scope(self.sparse), Scope(self.rewritten)

    def twin(self, node: Node) -> Node | None:
        """The operator of the sparse file that computes what `node` of the rewritten file gives under the same name."""
        return next((self.producers[name] for name in node.outputs if name in self.producers), None)

    def read(self, name: str) -> Held | None:
        """What a tensor of the rewritten file holds, for an operator that reads it; None if that is not known."""
        if name in self.helpers:
            self.helpers[name] = True
        return self.held.get(name)

    def constant(self, name: str) -> Array | None:
        """A constant of the rewritten file."""
        return self.rewritten.constants.get(name)

    def channel_count(self, tensor: str) -> int | None:
        """How many channels a tensor of the sparse file has."""
        shape = self.sparse.shapes.get(tensor, ())
        return shape[CHANNEL_AXIS] if len(shape) > CHANNEL_AXIS else None


def same_array(one: Array, other: Array) -> bool:
    """Whether two constants agree in dtype, shape and every bit."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.dtype == np.object_:
        return bool((one == other).all())
    return one.tobytes() == other.tobytes()


def same_attributes(one: Mapping[str, Any], other: Mapping[str, Any], *, but: tuple[str, ...] = ()) -> bool:
    """Whether two operators have the same attributes, apart from those called `but`."""
    names = {*one, *other} - {*but}
    return all(name in one and name in other and _same_value(one[name], other[name]) for name in names)


def _same_value(one: Any, other: Any) -> bool:
    if isinstance(one, np.ndarray) and isinstance(other, np.ndarray):
        return same_array(one, other)
    if isinstance(one, onnx.GraphProto) and isinstance(other, onnx.GraphProto):
        return bytes(one.SerializeToString(deterministic=True)) == bytes(other.SerializeToString(deterministic=True))
    if isinstance(one, tuple) and isinstance(other, tuple):
        return len(one) == len(other) and all(map(_same_value, one, other))
    return type(one) is type(other) and bool(one == other)
