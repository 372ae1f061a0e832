"""The --junit option."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from masksparse_deploy.core.artifacts.validation import ValidationReport
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import output_error
from masksparse_deploy.report.junit import StageTime, write_junit

__all__ = ["JunitFile", "junit_option"]

junit_option = click.option(
    "--junit", type=click.Path(path_type=Path), help="Write the checks as JUnit XML too, for CI systems: a file *.xml."
)


class JunitFile:
    """Where the checks of a command go; the file of an earlier run is removed first, so that none outlives an error."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._start = 0.0

    def __enter__(self) -> "JunitFile":
        """Remove what is there and start the clock; raises UsageError for another name, OutputError if it cannot be removed."""
        self._start = time.monotonic()
        if self._path is not None:
            if self._path.suffix != ".xml" or self._path.is_dir():  # or a slip would remove a file of the user's
                raise UsageError(f"--junit {self._path}: give the path of a file that ends in .xml, as out/junit.xml")
            try:
                self._path.unlink(missing_ok=True)
            except OSError as error:
                raise output_error(self._path, error) from error
        return self

    def __exit__(self, *_: Any) -> None:
        """Nothing is left to be done."""

    def write(self, report: ValidationReport, stages: Sequence[StageTime] = ()) -> None:
        """Write the checks, where the option was given; raises OutputError."""
        if self._path is not None:
            write_junit(self._path, report, seconds=time.monotonic() - self._start, stages=stages)
