"""Inlining the functions that a model brings along, and what about them is refused before it is done."""

from collections.abc import Iterable, Iterator, Mapping

import onnx
import onnx.inliner

from masksparse_deploy.core.errors import UsageError

__all__ = ["inlined", "require_finite_expansion", "require_own_operators"]

_MOST_NODES = 1_000_000
# Domains of operators that runtimes have themselves, and take in place of a function of the same name.
_BUILT_IN = ("ai.onnx", "com.microsoft")
_CONVERTING = "onnx.inliner.inline_local_functions(model, convert_version=True)"

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


def require_own_operators(model: onnx.ModelProto) -> None:
    """Raise a ValueError where two readers may take different operators for what the model says.

    That is so for versions of a domain that contradict each other, and for functions that stand for operators of a runtime.
    """
    versions: dict[str, int] = {}
    for entry in model.opset_import:
        domain = "" if entry.domain == "ai.onnx" else entry.domain
        if versions.setdefault(domain, entry.version) != entry.version:
            raise ValueError(
                f"it imports the versions {versions[domain]} and {entry.version} of the operators of {domain or 'ai.onnx'}"
            )
    for function in model.functions:
        if not function.domain or any(_lies_in(function.domain, domain) for domain in _BUILT_IN):
            raise ValueError(
                f"its function {function.domain}.{function.name} stands for an operator that runtimes have themselves"
            )


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its functions' operators in place of the calls.

    Raises:
        UsageError: a function is called that is written for other versions of operators than the model, which stays a call.
    """
    if not model.functions:
        return model
    versions = {entry.domain: entry.version for entry in model.opset_import}
    model = onnx.inliner.inline_local_functions(model)
    left = {_key(function): function for function in model.functions}
    for node in _with_bodies(model.graph.node):
        function = left.get((node.domain, node.op_type, getattr(node, "overload", "")))
        if function is not None:
            raise UsageError(f"{_other_versions(function, versions)}; inline it first with {_CONVERTING}")
    return model


def _other_versions(function: onnx.FunctionProto, versions: Mapping[str, int]) -> str:
    text = f"function {function.domain}.{function.name} cannot be inlined"
    for entry in function.opset_import:
        found = versions.get(entry.domain, entry.version)
        if found != entry.version:
            return (
                f"{text}: it is written for version {entry.version} of the operators of {entry.domain or 'ai.onnx'}, the file "
                f"for version {found}"
            )
    return text


def _lies_in(domain: str, outer: str) -> bool:
    return domain == outer or domain.startswith(f"{outer}.")


def _key(function: onnx.FunctionProto) -> _Key:
    return function.domain, function.name, getattr(function, "overload", "")


def _with_bodies(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from _with_bodies(body.node)
