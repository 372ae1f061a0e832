"""Which layer of an engine computes a node of the ONNX file."""

import re
from collections.abc import Iterable, Sequence
from typing import Protocol, TypeVar

from masksparse_deploy.graph.model import Node

__all__ = ["aliases", "carriers", "parts"]

# What TensorRT joins the names of merged layers by.
_JOINED = re.compile(r" (?:\+|\|\|) ")
# Copies that only change the format of a tensor; their names quote the layer that they work for.
_REFORMATS = re.compile(r"^Reformatting CopyNode for | output reformatter \d+$")


class _Merged(Protocol):
    @property
    def name(self) -> str: ...

    @property
    def onnx_nodes(self) -> tuple[str, ...]: ...


_M = TypeVar("_M", bound=_Merged)


def aliases(node: Node) -> frozenset[str]:
    """The names that TensorRT's parser may give a node; one without a name is called after its first output."""
    return frozenset(name for name in (node.name, f"node_of_{node.outputs[0]}" if node.outputs else "") if name)


def parts(name: str) -> tuple[str, ...]:
    """Names of the layers that were merged into the one called `name`; none of a layer that only changes formats."""
    return () if _REFORMATS.search(name) else tuple(_JOINED.split(name))


def carriers(names: Iterable[str], layers: Sequence[_M]) -> tuple[_M, ...]:
    """The layers that a node with one of `names` was merged into, by their metadata, or by their names where there is none."""
    wanted = set(names)
    return tuple(layer for layer in layers if not wanted.isdisjoint(layer.onnx_nodes or parts(layer.name)))
