from pathlib import Path

import pytest

from masksparse_deploy.core.channel_block import channel_block


@pytest.mark.parametrize(
    ("machine", "flags", "expected"),
    [
        ("x86_64", "fpu sse2 avx avx2 avx512f avx512dq", 16),
        ("x86_64", "fpu sse2 avx avx2", 8),
        ("AMD64", "fpu sse2", 8),
        ("aarch64", "fp asimd", 16),
        ("arm64", "", 16),
    ],
)
def test_it_is_that_of_the_processor(tmp_path: Path, machine: str, flags: str, expected: int) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: a processor\nflags\t\t: {flags}\n")
    assert channel_block(cpuinfo, machine) == expected


@pytest.mark.parametrize("content", [None, "processor\t: 0\n"])
def test_unknown_flags_give_what_suits_both(tmp_path: Path, content: str | None) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    if content is not None:
        cpuinfo.write_text(content)
    assert channel_block(cpuinfo, "x86_64") == 16


def test_this_machine_has_one() -> None:
    assert channel_block() in (8, 16)
