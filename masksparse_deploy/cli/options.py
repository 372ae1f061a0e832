"""Command-line options made from the option classes of the stages, so that defaults and help exist once."""

import functools
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import click
import pydantic

from masksparse_deploy.core.config import DataOptions, Options
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.explain import explain
from masksparse_deploy.core.samples import read_samples

__all__ = ["input_option", "json_option", "output_option", "with_calibration_samples", "with_options", "with_test_samples"]

_F = TypeVar("_F", bound=Callable[..., Any])

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")


def input_option(name: str, help_text: str, *, required: bool = True) -> Callable[[_F], _F]:
    """An option that takes the path of an existing artifact; its reader reports what is wrong with it."""
    return click.option(name, type=click.Path(path_type=Path), required=required, help=help_text)


def output_option(help_text: str) -> Callable[[_F], _F]:
    """The --out option."""
    return click.option("--out", type=click.Path(path_type=Path), required=True, help=help_text)


def with_options(
    options: type[Options], argument: str, *, only: Sequence[str] | None = None, required: bool = True
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of `options`; it gets the validated object as `argument`.

    Args:
        options: the option class of a stage.
        argument: name of the command's parameter.
        only: the fields to offer; all by default. The others keep their defaults.
        required: False for a group that may be left out as a whole; the command then gets None.
    """
    fields = {name: field for name, field in options.model_fields.items() if only is None or name in only}

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def wrapper(*args: Any, **values: Any) -> Any:
            given = {name: values.pop(name) for name in fields}
            given = {name: value for name, value in given.items() if value is not None and value != ()}
            try:
                values[argument] = options(**given) if given or required else None
            except pydantic.ValidationError as error:
                raise UsageError("\n".join(_as_option(line) for line in explain(error, options))) from error
            return command(*args, **values)

        for name, field in reversed(fields.items()):
            wrapper = _option(name, field, required=required and field.is_required())(wrapper)
        return wrapper

    return decorate


def with_test_samples(command: Callable[..., Any], *, required: bool = True) -> Callable[..., Any]:
    """Give a command the options that describe test images; it gets them as `samples`, None where these may be left out."""
    data = click.option("--data", required=required, help=_sentence(DataOptions.model_fields["test"]))
    return data(_with_image_sets(command, {"data": "samples"}))


def with_calibration_samples(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command options for test and calibration images, None where not given, as `samples` and `calibration`."""
    sources = {"data": "samples", "calibration": "calibration"}
    text = "Images, as the training images, for the ranges of reduced precisions."
    calibration = click.option("--calibration", help=f"{text} The forms are those of --data.")
    data = click.option("--data", help=_sentence(DataOptions.model_fields["test"]))
    return data(calibration(_with_image_sets(command, sources)))


def _with_image_sets(command: Callable[..., Any], sources: Mapping[str, str]) -> Callable[..., Any]:
    """Read the images that the options named by the keys point to, and pass them as the arguments named by the values."""
    fields = DataOptions.model_fields

    @functools.wraps(command)
    def wrapper(*args: Any, mean: tuple[float, ...], std: tuple[float, ...], image_size: int, limit: int, **values: Any) -> Any:
        for option, argument in sources.items():
            source = values.pop(option)
            if source is None:
                values[argument] = None
                continue
            samples = read_samples(source, folder=Path(), mean=mean or None, std=std or None, image_size=image_size)
            values[argument] = samples.first(limit) if option == "data" else samples
        return command(*args, **values)

    wrapper = click.option("--limit", type=click.IntRange(min=1), help=_sentence(fields["test_limit"]))(wrapper)
    for name in ("image_size", "std", "mean"):
        wrapper = _option(name, fields[name])(wrapper)
    return wrapper


def _option(name: str, field: Any, *, required: bool = False) -> Callable[[_F], _F]:
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
        return click.option(flag, name, type=_Choice(values), required=required, help=text)
    if typing.get_origin(kind) is tuple:
        return click.option(flag, name, type=typing.get_args(kind)[0], multiple=True, help=text + "  Repeatable.")
    return click.option(flag, name, type=kind, required=required, help=text)


class _Choice(click.Choice[str]):
    """A choice among values of any type, written as text."""

    def __init__(self, values: Sequence[Any]) -> None:
        super().__init__([str(value) for value in values])
        self._values = {str(value): value for value in values}

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return self._values[super().convert(value, param, ctx)]


def _without_none(annotation: Any) -> Any:
    if typing.get_origin(annotation) in (types.UnionType, typing.Union):  # a Literal or None is the latter
        return next(part for part in typing.get_args(annotation) if part is not type(None))
    return annotation


def _sentence(field: Any) -> str:
    text: str = field.description
    return text[0].upper() + text[1:] + "."


def _as_option(line: str) -> str:
    """A line of `explain` with the option's name for the field's."""
    name, colon, rest = line.partition(":")
    return "--" + name.replace("_", "-") + colon + rest
