"""The --gates option."""

from pathlib import Path

import click

from masksparse_deploy.core.config import Gates
from masksparse_deploy.pipeline.config_file import read_gates

__all__ = ["combined_gates", "gates_option"]

gates_option = click.option(
    "--gates", "gates_file", type=click.Path(path_type=Path), help="A YAML file of gates, as the section gates of deploy.yaml."
)


def combined_gates(path: Path | None, given: Gates) -> Gates:
    """The gates of a file, with those that were given as options in their place; raises UsageError."""
    if path is None:
        return given
    return read_gates(path).model_copy(update={name: getattr(given, name) for name in given.model_fields_set})
