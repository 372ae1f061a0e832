"""Reading a deploy.yaml or a gates.yaml: every mistake is named with its key, its value and what would be right."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any, TypeVar

import pydantic
import yaml

from masksparse_deploy.core.config import DeployConfig, Gates, Options
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.explain import explain
from masksparse_deploy.core.files import require_file

__all__ = ["read_config", "read_gates"]

_O = TypeVar("_O", bound=Options)


def read_config(path: Path) -> DeployConfig:
    """Read and validate a configuration file; its gates may lie in a file of their own, named from the configuration's folder.

    Raises:
        UsageError: no such file, not YAML, an unknown or missing key, or a value of the wrong type; names them all.
    """
    content = _mapping(path, "configuration", "'model', 'data' and 'out'")
    if isinstance(gates := content.get("gates"), str):
        content["gates"] = read_gates(path.parent / gates)
    return _validated(path, content, DeployConfig)


def read_gates(path: Path) -> Gates:
    """Read and validate a file of gates: the keys of the section `gates` of a configuration; raises as `read_config`."""
    return _validated(path, _mapping(path, "file of gates", "'accuracy_drop_points' and 'flip_rate'"), Gates)


def _mapping(path: Path, what: str, keys: str) -> dict[str, Any]:
    try:
        content = yaml.load(require_file(path, what).read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path.name}: holds {type(content).__name__}, not keys like {keys}")
    return content


def _validated(path: Path, content: dict[str, Any], options: type[_O]) -> _O:
    try:
        return options.model_validate(content)
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(f"{path.name}: {line}" for line in explain(error, options))) from error


class _Loader(yaml.SafeLoader):
    """Refuses a key that is given twice; plain YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """As in the base class, after the check."""
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
