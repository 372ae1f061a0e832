"""What is wrong with a set of options, in words: the key, the value, and what would be right."""

import difflib
from typing import Any

import pydantic

from masksparse_deploy.core.config import Options

__all__ = ["explain"]


def explain(error: pydantic.ValidationError, options: type[Options]) -> list[str]:
    """One line for each mistake that pydantic found in values for `options`: the key, the value, what would be right."""
    return [_explain_one(dict(entry), options) for entry in error.errors()]


def _explain_one(entry: dict[str, Any], options: type[Options]) -> str:
    location = [str(part) for part in entry["loc"]]
    key = ".".join(location)
    if entry["type"] == "extra_forbidden":
        known = list(_options_at(options, location[:-1]).model_fields)
        close = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"
        return f"{key}: unknown key; {hint}"
    if entry["type"] == "missing":
        field = _options_at(options, location[:-1]).model_fields.get(location[-1])
        meaning = f" ({field.description})" if field is not None and field.description else ""
        return f"{key}: missing{meaning}"
    message = entry["msg"].removeprefix("Value error, ")
    return f"{key}: {message[0].lower() + message[1:]}, not {entry['input']!r}"


def _options_at(options: type[Options], location: list[str]) -> type[Options]:
    """The class that describes the section at `location`."""
    for part in location:
        field = options.model_fields.get(part)
        if field is None or not (isinstance(field.annotation, type) and issubclass(field.annotation, Options)):
            break
        options = field.annotation
    return options
