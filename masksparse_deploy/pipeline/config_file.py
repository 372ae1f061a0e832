"""Reading a deploy.yaml: every mistake is named with its key, its value and what would be right."""

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import pydantic
import yaml

from masksparse_deploy.core.config import DeployConfig
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.explain import explain
from masksparse_deploy.core.files import require_file

__all__ = ["read_config"]


def read_config(path: Path) -> DeployConfig:
    """Read and validate a configuration file.

    Raises:
        UsageError: no such file, not YAML, an unknown or missing key, or a value of the wrong type; names them all.
    """
    try:
        content = yaml.load(require_file(path, "configuration").read_text(encoding="utf-8"), Loader=_Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path.name}: not valid YAML: {_one_line(error)}") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path.name}: holds {type(content).__name__}, not keys like 'model', 'data' and 'out'")
    try:
        return DeployConfig.model_validate(content)
    except pydantic.ValidationError as error:
        raise UsageError("\n".join(f"{path.name}: {line}" for line in explain(error, DeployConfig))) from error


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
