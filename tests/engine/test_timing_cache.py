"""Kernel times in a file that processes share: locked, merged, and set aside where they cannot be used."""

import re
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from masksparse_deploy.core.artifacts.engines import DeviceFacts
from masksparse_deploy.core.config import EngineOptions
from masksparse_deploy.core.errors import OutputError
from masksparse_deploy.engine.tensorrt_versions import recorded_options
from masksparse_deploy.engine.timing_cache import TimingCache, cache_key, timing_cache_in

H100 = DeviceFacts(kind="cuda", name="NVIDIA H100 PCIe", details={"compute_capability": "9.0", "cuda_driver": "12.4"})
VERSION = {"tensorrt": "10.16.1"}


def key_of(
    device: DeviceFacts = H100, versions: Mapping[str, str] = VERSION, *, precision: str = "fp16", **options: Any
) -> dict[str, str]:
    return cache_key(device, versions, recorded_options(EngineOptions(**options)), precision=precision)


KEY = key_of()
ROUNDS = 10


def join(*lines: bytes) -> bytes:
    return b"\n".join(sorted({line for line in lines if line}))


def cache_in(folder: Path) -> TimingCache:
    return timing_cache_in(folder, KEY)


def test_what_is_written_is_read_and_merged(tmp_path: Path) -> None:
    cache = cache_in(tmp_path / "new")
    assert cache.read() == (b"", "")
    assert cache.update(lambda held: join(held, b"a\x00\xff")) == ""
    assert cache.read() == (b"a\x00\xff", "")
    cache.update(lambda held: held + b"!")
    assert cache.read() == (b"a\x00\xff!", "")
    assert "NVIDIA_H100_PCIe_10.16.1" in cache.path.name


def test_each_device_version_and_choice_of_tactics_has_its_own(tmp_path: Path) -> None:
    driver = H100.model_copy(update={"details": {**H100.details, "cuda_driver": "13.0"}})
    other = DeviceFacts(kind="cuda", name="NVIDIA A100", details={"compute_capability": "8.0"})
    keys = [KEY, key_of(versions={"tensorrt": "11.4.0"}), key_of(driver), key_of(other), key_of(precision="fp32")]
    keys += [key_of(sparse_tactics=False), key_of(tactic_sources=("JIT_CONVOLUTIONS",)), key_of(refit=True)]
    keys += [key_of(hardware_compatibility="ampere-plus"), key_of(version_compatible=True), key_of(optimization_level=5)]
    assert len({timing_cache_in(tmp_path, key).path for key in keys}) == len(keys)
    assert key_of(batch=8, largest_batch=16) == KEY  # shapes belong to the layers


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda whole: whole[:-1], "has not the digest it begins with"),
        (lambda whole: whole[:-1] + b"?", "has not the digest it begins with"),
        (lambda whole: b"", "does not begin with its key"),
        (lambda whole: b"\xff\xfe" + whole, "does not begin with its key"),
        (lambda whole: b"[]\n", "has not the digest it begins with"),
        (lambda whole: whole.replace(b"10.16.1", b"10.16.2"), "holds the times of another device or version"),
        (lambda whole: whole.replace(b"H100", b"H200"), "holds the times of another device or version"),
    ],
)
def test_what_cannot_be_used_is_set_aside(tmp_path: Path, spoil: object, words: str) -> None:
    assert callable(spoil)
    cache = cache_in(tmp_path)
    cache.update(lambda held: b"times")
    spoiled = spoil(cache.path.read_bytes())
    cache.path.write_bytes(spoiled)
    content, warning = cache.read()
    assert content == b""
    assert words in warning
    assert f"set aside as {cache.path.name}.damaged, and all kernels are timed anew" in warning
    assert cache.path.with_name(cache.path.name + ".damaged").read_bytes() == spoiled
    assert cache.update(lambda held: join(held, b"new")) == ""
    assert cache.read() == (b"new", "")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OutputError, match="cannot be written"):
        cache_in(tmp_path / "file").read()


WRITER = """
import sys, time
from pathlib import Path
from masksparse_deploy.engine.timing_cache import TimingCache
cache = TimingCache(path=Path(sys.argv[1]), key={})
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(sys.argv[2])):
    def merge(held):
        time.sleep(0.01)  # long enough for the other process to come between, were there no lock
        return held + f"b{number}\\n".encode()
    assert cache.update(merge) == ""
"""


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    cache = TimingCache(path=tmp_path / "times", key={})
    command = [sys.executable, "-c", WRITER, str(cache.path), str(ROUNDS)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        assert writer.stdin is not None
        assert writer.stdout.readline() == "ready\n"
        writer.stdin.write("go\n")
        writer.stdin.flush()
        count = 0
        while writer.poll() is None:  # so that each of the other's rounds has one of ours beside it
            cache.update(lambda held, number=count: held + f"a{number}\n".encode())
            count += 1
            time.sleep(0.005)
        assert writer.returncode == 0
    content, warning = cache.read()
    expected = {f"a{number}" for number in range(count)} | {f"b{number}" for number in range(ROUNDS)}
    assert (set(content.decode().splitlines()), warning) == (expected, "")


def test_without_the_lock_they_would(tmp_path: Path) -> None:
    """The same interleaving by hand: a writer that read before the other wrote takes the other's times away."""
    cache = cache_in(tmp_path)
    held, _ = cache.read()
    cache.update(lambda now: join(now, b"a"))
    cache.update(lambda now: join(held, b"b"))
    assert cache.read() == (b"b", "")


def test_a_folder_that_cannot_be_locked(tmp_path: Path) -> None:
    cache = timing_cache_in(tmp_path, KEY)
    cache.path.with_name(cache.path.name + ".lock").mkdir()
    with pytest.raises(OutputError, match=re.escape(cache.path.name)):
        cache.read()
