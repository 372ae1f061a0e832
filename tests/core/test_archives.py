"""Archives that unpack to far more than they hold."""

from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from masksparse_deploy.core.archives import refuse_bomb
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.samples import read_samples


def bomb(path: Path, *, declared_bytes: int = 1 << 40) -> Path:
    """A small archive whose directory declares that its one entry unpacks to `declared_bytes`."""
    with ZipFile(path, "w", ZIP_DEFLATED) as archive:
        archive.writestr("images.npy", b"\0" * 1000)
        archive.infolist()[0].file_size = declared_bytes
    return path


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"would unpack to 1,099,511,627,776, more than 200 times as much"):
        refuse_bomb(bomb(tmp_path / "model.pth"))


def test_images_are_read_through_the_same_check(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="from a source that you trust"):
        read_samples("data.npz", folder=bomb(tmp_path / "data.npz").parent)


def test_ordinary_archives_pass(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "blank.npz", images=np.zeros((1000, 3, 32, 32), np.float32))
    refuse_bomb(tmp_path / "blank.npz")
    refuse_bomb(bomb(tmp_path / "one gibibyte.npz", declared_bytes=1 << 30))


def test_other_files_and_missing_ones_pass(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"not an archive")
    refuse_bomb(tmp_path / "model.safetensors")
    refuse_bomb(tmp_path / "missing")


def test_a_damaged_directory_is_told(tmp_path: Path) -> None:
    path = bomb(tmp_path / "data.npz")
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\x01\x02")] = 0
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=r"data\.npz is a damaged zip archive"):
        refuse_bomb(path)
