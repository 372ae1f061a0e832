"""Facts about the CPU that engines run on."""

import os
import platform
from pathlib import Path

from masksparse_deploy.core.artifacts.engines import DeviceFacts

__all__ = ["available_core_count", "processor_facts"]

_CPUINFO = Path("/proc/cpuinfo")
_TOPOLOGY = Path("/sys/devices/system/cpu")


def available_core_count(topology: Path = _TOPOLOGY) -> int:
    """Physical cores that this process may use; hardware threads where the system does not tell which of them share a core."""
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    cores = set()
    for thread in allowed:
        siblings = topology / f"cpu{thread}" / "topology" / "thread_siblings_list"
        try:
            cores.add(siblings.read_text().strip())
        except OSError:
            return max(len(allowed), 1)
    return max(len(cores), 1)


def processor_facts(cpuinfo: Path = _CPUINFO) -> DeviceFacts:
    """Name, architecture and number of hardware threads of this machine's CPU."""
    name = platform.processor() or platform.machine() or "unknown CPU"
    try:
        lines = cpuinfo.read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() == "model name" and value.strip():
            name = value.strip()
            break
    details = {"architecture": platform.machine() or "unknown", "hardware_threads": str(os.cpu_count() or 1)}
    return DeviceFacts(kind="cpu", name=name, details=details)
