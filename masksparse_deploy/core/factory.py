"""Python objects named in a configuration as "module:callable"."""

import importlib
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import sha256_bytes

__all__ = ["is_factory", "load_factory", "source_file"]


def is_factory(text: str) -> bool:
    """Whether `text` looks like "module:callable" (and not like a path)."""
    module, colon, name = text.partition(":")
    return bool(colon) and name.isidentifier() and all(part.isidentifier() for part in module.split("."))


def load_factory(text: str, folder: Path) -> Callable[..., Any]:
    """Return the callable named "module:callable"; the module lies in `folder` or on the Python path.

    Raises:
        UsageError: not of that form, no such module or callable, or the import fails.
    """
    if not is_factory(text):
        raise UsageError(f"{text!r} is not of the form module:callable, for example model:digits_net")
    module_name, _, name = text.partition(":")
    beside = _file_beside(module_name, folder)
    try:
        if beside is not None and str(folder.resolve()) not in sys.path:
            # As for a script: what lies beside it can be imported, also later, inside its functions.
            sys.path.insert(0, str(folder.resolve()))
        is_file = beside is not None and beside.parent == folder
        module = _load_file(beside) if beside and is_file else importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        where = str(beside or f"{folder} or on the Python path")
        raise UsageError(f"{text}: the module could not be imported from {where} ({type(error).__name__}: {error})") from error
    factory = getattr(module, name, None)
    if not callable(factory):
        names = sorted(key for key, value in vars(module).items() if callable(value) and not key.startswith("_"))
        raise UsageError(f"{text}: {module_name} has no callable {name!r}; it has: {', '.join(names) or 'none'}")
    return factory  # type: ignore[no-any-return]


def source_file(text: str, folder: Path) -> Path | None:
    """The file that defines the module of "module:callable", where it can be told without importing it."""
    module_name = text.partition(":")[0]
    beside = _file_beside(module_name, folder)
    if beside is not None:
        return beside
    try:
        spec = importlib.util.find_spec(module_name)
    except (ImportError, ValueError):
        return None
    return Path(spec.origin) if spec and spec.origin and Path(spec.origin).is_file() else None


def _file_beside(module_name: str, folder: Path) -> Path | None:
    """The file of a module or package that lies in `folder`."""
    base = folder.joinpath(*module_name.split("."))
    return next((file for file in (base.with_suffix(".py"), base / "__init__.py") if file.is_file()), None)


def _load_file(path: Path) -> Any:
    """Import `path` under a name of its own, so that two folders may both have a model.py."""
    key = f"_masksparse_user_{sha256_bytes(str(path.resolve()).encode())}"
    if key in sys.modules:
        return sys.modules[key]
    spec = importlib.util.spec_from_file_location(key, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[key] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[key]
        raise
    return module
