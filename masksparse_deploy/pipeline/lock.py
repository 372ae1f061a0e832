"""One process at a time in an output folder."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.files import make_folder, output_error

__all__ = ["exclusive"]


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Hold `folder` for this process; the system lets go of it when the process ends, however it ends.

    Raises:
        UsageError: another process holds it.
        OutputError: the folder cannot be written.
    """
    try:
        import fcntl
    except ImportError:  # no such locks on Windows; there two runs in one folder are the user's to avoid
        make_folder(folder)
        yield
        return
    make_folder(folder / ".stages")
    try:
        stream = (folder / ".stages" / "lock").open("w")
    except OSError as error:
        raise output_error(folder, error) from error
    with stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(
                f"another masksparse process is working in {folder}; wait for it or choose another folder"
            ) from error
        yield
