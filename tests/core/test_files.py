import errno
import subprocess
import sys
from pathlib import Path

import pytest

from masksparse_deploy.core.errors import OutputError, UsageError
from masksparse_deploy.core.files import atomic_output, canonical_json, require_file, sha256_bytes, sha256_file, write_atomic


def leftovers(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_an_output_appears_whole(tmp_path: Path) -> None:
    write_atomic(tmp_path / "new" / "a.bin", b"content")
    assert (tmp_path / "new" / "a.bin").read_bytes() == b"content"
    assert leftovers(tmp_path / "new") == ["a.bin"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(errno.ENOSPC, "no space left on the device"), (errno.EROFS, "may write to"), (errno.EIO, "another output folder")],
)
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, number: int, words: str) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(OutputError, match=words), atomic_output(path) as partial:
        partial.write_bytes(b"half of the new conte")
        raise OSError(number, "planted")
    assert path.read_bytes() == b"old"
    assert leftovers(tmp_path) == ["a.bin"]


def test_any_other_error_leaves_nothing_either(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), atomic_output(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt
    assert leftovers(tmp_path) == []


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.skipif(sys.platform == "win32", reason="whether a process runs cannot be told there")
@pytest.mark.parametrize("name", ["a.bin", "a [1] \N{LATIN SMALL LETTER U WITH DIAERESIS}.bin"])
def test_what_a_killed_process_left_is_removed(tmp_path: Path, name: str) -> None:
    (tmp_path / f".{name}.{ended_process()}.partial").write_bytes(b"half")
    write_atomic(tmp_path / name, b"whole")
    assert leftovers(tmp_path) == [name]


def test_what_a_running_process_is_writing_stays(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        live = tmp_path / f".a.bin.{process.pid}.partial"
        live.write_bytes(b"half")
        write_atomic(tmp_path / "a.bin", b"whole")
        assert leftovers(tmp_path) == sorted([live.name, "a.bin"])
        process.communicate(b"\n")


def test_what_belongs_to_another_output_stays(tmp_path: Path) -> None:
    other = f".a.bin.{ended_process()}.partial"
    (tmp_path / other).write_bytes(b"half")
    write_atomic(tmp_path / "a", b"whole")
    assert leftovers(tmp_path) == sorted([other, "a"])


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / ("x" * 250), b"content")


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        write_atomic(tmp_path / "out" / "a.bin", b"content")


def test_missing_files_name_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model.pth").write_bytes(b"")
    with pytest.raises(UsageError, match=r"checkpoint .*modle\.pth does not exist \(.*holds model\.pth\)"):
        require_file(tmp_path / "modle.pth", "checkpoint")
    with pytest.raises(UsageError, match="does not exist"):
        require_file(tmp_path / "no" / "model.pth", "checkpoint")
    with pytest.raises(UsageError, match="is a folder"):
        require_file(tmp_path, "checkpoint")


def test_digest_of_a_file_is_that_of_its_bytes(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    assert sha256_file(tmp_path / "a") == sha256_bytes(data)


def test_canonical_json_sorts_and_refuses_nan() -> None:
    assert canonical_json({"b": 1, "a": 2}) == canonical_json({"a": 2, "b": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": float("nan")})
