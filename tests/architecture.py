"""Which part of the package may import which, read from the source without importing it."""

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = "masksparse_deploy"

# Part -> the parts it may import, besides itself.
ALLOWED: dict[str, set[str]] = {
    "core": set(),
    "checker": set(),  # checks what certify proves, so it shares nothing with it
    "graph": {"core"},
    "learn": {"core", "graph"},
    "bake": {"core", "graph"},
    "certify": {"core", "graph"},
    "engine": {"core", "graph"},
    "profiling": {"core", "graph", "engine"},
    "rewrite": {"core", "graph", "engine", "profiling"},
    "forecast": {"core", "graph", "engine", "profiling"},
    "validate": {"core", "graph", "engine", "rewrite"},
    "report": {"core"},
    "pipeline": {
        "core",
        "graph",
        "learn",
        "bake",
        "certify",
        "engine",
        "profiling",
        "rewrite",
        "forecast",
        "validate",
        "report",
    },
    "cli": {
        "core",
        "graph",
        "learn",
        "bake",
        "certify",
        "engine",
        "profiling",
        "rewrite",
        "forecast",
        "validate",
        "report",
        "pipeline",
        "checker",
    },
}

# Parts that must work on a deployment machine without torch, wherever in the file the import stands.
WITHOUT_TORCH = {"core", "checker", "graph", "certify", "engine", "profiling", "rewrite", "forecast", "validate", "report"}


def violations(root: Path) -> list[str]:
    """Every forbidden import below `root`, the folder of the package, as "file:line: what"."""
    found = []
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        part = relative.parts[0] if len(relative.parts) > 1 else None
        for line, target in imports(ast.parse(file.read_text(encoding="utf-8"))):
            reason = _forbidden(part, target)
            if reason:
                found.append(f"{relative.as_posix()}:{line}: {reason}")
    return found


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """All imported modules, also inside functions and by name through import_module or require."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield node.lineno, base
            for alias in node.names:
                yield node.lineno, f"{base}.{alias.name}"
        elif isinstance(node, ast.Call) and _called(node) in {"import_module", "require", "__import__"}:
            for argument in node.args[:1]:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    yield node.lineno, argument.value


def _called(node: ast.Call) -> str:
    function = node.func
    return function.attr if isinstance(function, ast.Attribute) else function.id if isinstance(function, ast.Name) else ""


def _forbidden(part: str | None, target: str) -> str | None:
    if target.startswith("."):
        return f"relative import {target}"
    names = target.split(".")
    if part in WITHOUT_TORCH and names[0] in {"torch", "torchvision", "onnxscript"}:
        return f"{part} must work without {names[0]}"
    if names[0] in {"tests", "tools", "samples"}:
        return f"the package must not import {names[0]}"
    if names[0] != PACKAGE or len(names) < 2 or part is None:
        return None
    if part not in ALLOWED:
        return f"{part} is not a known part of the package"
    if names[1] in ALLOWED and names[1] != part and names[1] not in ALLOWED[part]:
        return f"{part} must not import {names[1]}"
    return None
