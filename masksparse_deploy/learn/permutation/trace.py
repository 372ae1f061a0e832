"""What is known of the channels while the operators of a network are walked through."""

from collections.abc import Mapping
from typing import Any

from torch.fx import Node

from masksparse_deploy.learn.permutation.layout import Arrangement, Channels, Layout

__all__ = ["Trace", "Value", "shape_of"]

# None: no channel of it is followed, whatever the new order is its values are the same.
Value = Layout | None


def shape_of(node: Node) -> tuple[int, ...]:
    """The shape of a node's tensor for a batch of two images."""
    return tuple(node.meta["val"].shape)


class Trace:
    """What is known while the operators are walked through.

    Attributes:
        channels: the identities.
        values: of the nodes so far; a tuple for a node with several tensors.
        names: parameter nodes -> names in the state dict, tied parameters under one name; None for those that must stay.
    """

    def __init__(self, names: Mapping[Node, str | None]) -> None:
        self.channels = Channels()
        self.values: dict[Node, Value | tuple[Value, ...]] = {}
        self.names = names
        self._readings: dict[tuple[str, int], Layout] = {}

    def value(self, node: Node) -> Value:
        """The layout of a node's tensor. A parameter with one axis gets one; any other read in this way has to stay."""
        if node in self.names and node not in self.values:
            long = [axis for axis, length in enumerate(shape_of(node)) if length > 1]
            name = self.names[node]
            if name is None or len(long) > 1:
                self.read(node, {})
                return None
            self.values[node] = None
            for axis in long:
                layout = self._readings.get((name, axis)) or self.channels.fresh(axis, shape_of(node)[axis])
                self.values[node] = self._readings[name, axis] = layout.moved(axis)
        found = self.values.get(node)
        if isinstance(found, tuple):
            self.pin(node)
            return None
        return found

    def has_several_axes(self, node: Node) -> bool:
        """Whether the node is a parameter that only `read` can tell the layouts of."""
        return node in self.names and sum(length > 1 for length in shape_of(node)) > 1

    def read(self, node: Any, layouts: Mapping[int, Value]) -> None:
        """Note that a parameter is read with these layouts along its axes; its other axes stay as they are.

        Anything that is computed, in place of a parameter, stays as it is, and so do the layouts.
        """
        if not isinstance(node, Node):
            return
        name = self.names.get(node)
        if name is None:
            for layout in (*layouts.values(), None if node in self.names else self.value(node)):
                if layout is not None:
                    self.channels.pin(layout)
            return
        for axis, length in enumerate(shape_of(node)):
            if length == 1:
                continue
            layout = layouts.get(axis)
            if layout is None or len(layout) != length:
                if layout is not None:
                    self.channels.pin(layout)
                layout = self.channels.fixed(axis, length)
            before = self._readings.setdefault((name, axis), layout)
            if before is not layout:
                self.channels.unify(before, layout)

    def pin(self, node: Node) -> None:
        """Whatever is done with the node's tensors is not known: their channels stay."""
        found = self.values.get(node)
        for layout in found if isinstance(found, tuple) else (self.value(node),):
            if layout is not None:
                self.channels.pin(layout)

    def arrange(self) -> Arrangement:
        """What follows from everything that was noted."""
        return self.channels.arrange(self._readings)
