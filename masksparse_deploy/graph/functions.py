"""How large a model becomes when its local functions are inlined, told before it is done."""

from collections.abc import Iterable, Iterator

import onnx

__all__ = ["require_finite_expansion"]

_MOST_NODES = 1_000_000

_Key = tuple[str, str, str]


def require_finite_expansion(model: onnx.ModelProto) -> None:
    """Raise a ValueError if functions call themselves, or each other so often that inlining them takes too much memory."""
    functions = {_key(function): function for function in model.functions}
    sizes: dict[_Key, int] = {}
    open_calls: set[_Key] = set()

    def size(nodes: Iterable[onnx.NodeProto]) -> int:
        count = 0
        for node in _with_bodies(nodes):
            key = (node.domain, node.op_type, getattr(node, "overload", ""))
            count += expanded(key) if key in functions else 1
        return count

    def expanded(key: _Key) -> int:
        if key in open_calls:
            raise ValueError(f"the function {key[0]}.{key[1]} calls itself")
        if key not in sizes:
            open_calls.add(key)
            sizes[key] = size(functions[key].node)
            open_calls.remove(key)
        return sizes[key]

    total = size(model.graph.node)
    if total > _MOST_NODES:
        raise ValueError(f"its functions stand for {total:,} operators; at most {_MOST_NODES:,} are read")


def _key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, getattr(function, "overload", "")


def _with_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _with_bodies(body.node)
