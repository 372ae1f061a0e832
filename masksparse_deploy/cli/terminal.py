"""Where text goes, results on stdout and progress on stderr; and one command at a time in an output folder."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from masksparse_deploy.core.artifacts.document import Document
from masksparse_deploy.core.launch import is_main_process
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.pipeline.lock import exclusive

__all__ = ["alone_in", "console", "emit", "shown_progress"]

PLAIN_WIDTH = 120


def console() -> Console:
    """Standard output; lines are not broken at 80 columns where it is not a terminal."""
    out = Console(highlight=False)
    if not out.is_terminal and "COLUMNS" not in os.environ:
        out = Console(highlight=False, width=PLAIN_WIDTH)
    return out


def emit(document: Document, as_json: bool, *renderables: Any) -> None:
    """Print a result: as JSON, or as `renderables`. Of several processes that a launcher started, one prints."""
    if not is_main_process():
        return
    if as_json:
        click.echo(document.to_bytes().decode(), nl=False)
        return
    out = console()
    for renderable in renderables:
        out.print(renderable)


def alone_in(folder: Path) -> AbstractContextManager[None]:
    """Hold an output folder as `masksparse deploy` does; of several processes that a launcher started, the first holds it.

    Raises:
        UsageError: another masksparse process works there.
        OutputError: the folder cannot be written.
    """
    return exclusive(folder) if is_main_process() else nullcontext()


@contextmanager
def shown_progress() -> Iterator[Progress]:
    """A callback that draws progress bars on stderr while the block runs; draws nothing where stderr is no terminal.

    Of several processes that a launcher started, one draws.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    error = Console(stderr=True)
    with Bars(*columns, console=error, transient=True, disable=not (error.is_terminal and is_main_process())) as bars:
        tasks: dict[str, Any] = {}

        def show(description: str, done: int, total: int) -> None:
            if description not in tasks:
                for finished in tasks.values():
                    bars.update(finished, visible=False)
                tasks.clear()
                tasks[description] = bars.add_task(description, total=total)
            bars.update(tasks[description], completed=done, total=total)

        yield show
