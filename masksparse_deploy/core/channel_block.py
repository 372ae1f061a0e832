"""How many channels ONNX Runtime's blocked layout keeps together on this machine's processor."""

import platform
from pathlib import Path

__all__ = ["channel_block"]

_CPUINFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "i386", "i686")


def channel_block(cpuinfo: Path = _CPUINFO, machine: str | None = None) -> int:
    """Channels of a block: a grouped convolution stays in the blocked layout if its groups read and give multiples of it.

    As ONNX Runtime's MlasNchwcGetBlockSize has it: 16 on x86 processors with AVX-512F, 8 on others. On ARM it is 16 in builds
    that have blocked kernels. Where the processor's flags cannot be read it is 16, which is a multiple of the other.

    Args:
        cpuinfo: where Linux tells the processor's flags.
        machine: the architecture, as platform.machine() tells it; that of this machine by default.
    """
    if (machine or platform.machine()).lower() not in _X86:
        return 16
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        return 16
    flags = next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ["avx512f"])
    return 16 if "avx512f" in flags else 8
