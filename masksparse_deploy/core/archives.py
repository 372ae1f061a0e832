"""Zip archives (.npz, torch checkpoints) that would unpack to far more than anybody stores in them."""

from pathlib import Path
from zipfile import BadZipFile, ZipFile, is_zipfile

from masksparse_deploy.core.errors import ArtifactError

__all__ = ["refuse_bomb"]

# Images and weights compress to a tenth at best; a million zeros compress to a thousandth.
_LARGEST_RATIO = 200
_HARMLESS_BYTES = 1 << 30


def refuse_bomb(path: Path) -> None:
    """Look at the sizes a zip archive declares, before anything is unpacked; any other file passes.

    Raises:
        ArtifactError: it declares more than 1 GiB and more than 200 times its own size, or its directory is damaged.
    """
    if not path.is_file() or not is_zipfile(path):
        return
    try:
        with ZipFile(path) as archive:
            unpacked_bytes = sum(entry.file_size for entry in archive.infolist())
    except (BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise ArtifactError(f"{path} is a damaged zip archive ({error}); copy it again") from error
    stored_bytes = path.stat().st_size
    if unpacked_bytes > max(_HARMLESS_BYTES, _LARGEST_RATIO * stored_bytes):
        raise ArtifactError(
            f"{path} has {stored_bytes:,} bytes and would unpack to {unpacked_bytes:,}, more than {_LARGEST_RATIO} times as "
            "much; no images or weights compress like that: get the file from a source that you trust"
        )
