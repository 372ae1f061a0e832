"""Command-line options made from the option classes of the stages, so that defaults and help exist once."""

import functools
import types
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import pydantic

from masksparse_deploy.core.config import DataOptions, Options
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.explain import explain
from masksparse_deploy.core.samples import read_samples

__all__ = ["input_option", "json_option", "output_option", "with_options", "with_test_samples"]

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def input_option(name: str, help_text: str, *, required: bool = True) -> Callable[[_F], _F]:
    """An option that takes the path of an existing artifact; its reader reports what is wrong with it."""
    return click.option(name, type=click.Path(path_type=Path), required=required, help=help_text)


def output_option(help_text: str) -> Callable[[_F], _F]:
    """The --out option."""
    return click.option("--out", type=click.Path(path_type=Path), required=True, help=help_text)


def with_options(
    options: type[Options], argument: str, *, only: Sequence[str] | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of `options`; it gets the validated object as `argument`.

    Args:
        options: the option class of a stage.
        argument: name of the command's parameter.
        only: the fields to offer; all by default. The others keep their defaults.
    """
    fields = {name: field for name, field in options.model_fields.items() if only is None or name in only}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in given.items() if value is not None and value != ()}
            try:
                values[argument] = options(**given)
            except pydantic.ValidationError as error:
                raise UsageError("\n".join(_as_option(line) for line in explain(error, options))) from error
            return command(*args, **values)

        for name, field in reversed(fields.items()):
            wrapper = _option(name, field)(wrapper)
        return wrapper

    return decorate


def with_test_samples(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that describe test images; it gets them as `samples`."""
    fields = DataOptions.model_fields

    @functools.wraps(command)
    def wrapper(
        *args: Any, data: str, mean: tuple[float, ...], std: tuple[float, ...], image_size: int, limit: int, **values: Any
    ) -> Any:
        samples = read_samples(data, folder=Path(), mean=mean or None, std=std or None, image_size=image_size)
        return command(*args, samples=samples.first(limit), **values)

    wrapper = click.option("--limit", type=click.IntRange(min=1), help=_sentence(fields["test_limit"]))(wrapper)
    for name in ("image_size", "std", "mean"):
        wrapper = _option(name, fields[name])(wrapper)
    return click.option("--data", required=True, help=_sentence(fields["test"]))(wrapper)


def _option(name: str, field: Any) -> Callable[[_F], _F]:
    flag = "--" + name.replace("_", "-")
    kind = _without_none(field.annotation)
    text = _sentence(field)
    if not field.is_required() and field.default not in (None, ()):
        default = field.default if not isinstance(field.default, tuple) else " ".join(map(str, field.default))
        text += f"  [default: {str(default).lower() if isinstance(default, bool) else default}]"
    if kind is bool:
        return click.option(f"{flag}/--no-{flag[2:]}", name, default=None, help=text)
    if typing.get_origin(kind) is Literal:
        values = typing.get_args(kind)
        return click.option(flag, name, type=_Choice(values), required=field.is_required(), help=text)
    if typing.get_origin(kind) is tuple:
        return click.option(flag, name, type=typing.get_args(kind)[0], multiple=True, help=text + "  Repeatable.")
    return click.option(flag, name, type=kind, required=field.is_required(), help=text)


class _Choice(click.Choice[str]):
    """A choice among values of any type, written as text."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__([str(value) for value in values])
        self._values = {str(value): value for value in values}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._values[super().convert(value, param, ctx)]


def _without_none(annotation: Any) -> Any:
    if isinstance(annotation, types.UnionType):
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _sentence(field: Any) -> str:
    text: str = field.description
    return text[0].upper() + text[1:] + "."


def _as_option(line: str) -> str:
    """A line of `explain` with the option's name for the field's."""
    name, colon, rest = line.partition(":")
    return "--" + name.replace("_", "-") + colon + rest
