"""Reading a GPU's clocks, temperature, power and processes while something is timed on it, through NVML."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from masksparse_deploy.core.artifacts.gpu_state import GpuReading, GpuState
from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.core.optional import require
from masksparse_deploy.engine.driver import first_gpu_bus_id

__all__ = ["GpuWatch", "other_process_count", "watch_gpu"]

_MW_PER_W = 1000.0
# In NVML's words, without its prefix, and in ours.
_LIMITS = {
    "SwPowerCap": "power cap",
    "HwSlowdown": "hardware slowdown",
    "SwThermalSlowdown": "heat (software)",
    "HwThermalSlowdown": "heat (hardware)",
    "HwPowerBrakeSlowdown": "power brake",
    "SyncBoost": "kept in step with other GPUs",
    "ApplicationsClocksSetting": "clocks set by the user",
    "DisplayClockSetting": "display",
    "GpuIdle": "idle",
    "BoardLimit": "board limit",
    "Reliability": "reliable voltage",
}


class GpuWatch:
    """One GPU under observation; `state` has what was seen so far. NVML must be initialised.

    Args:
        nvml: the module `pynvml`.
        handle: NVML's handle of the GPU.
        own_pid: the process that times, which holds a context on the GPU.
    """

    def __init__(self, nvml: Any, handle: Any, *, own_pid: int) -> None:
        self._nvml = nvml
        self._handle = handle
        self._own_pid = own_pid
        self._readings: list[GpuReading] = []

    def read(self, when: Literal["start", "during", "end"]) -> None:
        """Take a reading; what the driver does not tell on this GPU is left out."""
        nvml, handle = self._nvml, self._handle
        power_mw = self._ask(nvml.nvmlDeviceGetPowerUsage, handle)
        limits = self._ask(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
        processes = self._ask(nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        pids = None if processes is None else [process.pid for process in processes]
        self._readings.append(
            GpuReading(
                when=when,
                sm_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM),
                memory_clock_mhz=self._ask(nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_MEM),
                temperature_c=self._ask(nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU),
                power_w=None if power_mw is None else power_mw / _MW_PER_W,
                clock_limits=None if limits is None else self._named(limits),
                other_process_count=None if pids is None else other_process_count(pids, self._own_pid),
            )
        )

    @property
    def state(self) -> GpuState:
        """All readings, and what does not change between them."""
        nvml, handle = self._nvml, self._handle
        limit_mw = self._ask(nvml.nvmlDeviceGetEnforcedPowerLimit, handle)
        persistence = self._ask(nvml.nvmlDeviceGetPersistenceMode, handle)
        mig = self._ask(nvml.nvmlDeviceGetMigMode, handle)
        return GpuState(
            driver_version=self._ask(nvml.nvmlSystemGetDriverVersion),
            highest_sm_clock_mhz=self._ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_SM),
            highest_memory_clock_mhz=self._ask(nvml.nvmlDeviceGetMaxClockInfo, handle, nvml.NVML_CLOCK_MEM),
            power_limit_w=None if limit_mw is None else limit_mw / _MW_PER_W,
            persistence_mode=None if persistence is None else persistence == nvml.NVML_FEATURE_ENABLED,
            mig=None if mig is None else mig[0] == nvml.NVML_DEVICE_MIG_ENABLE,
            readings=tuple(self._readings),
        )

    def _ask(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function of NVML tells; None where this GPU, driver or user may not be told."""
        try:
            return function(*arguments)
        except self._nvml.NVMLError:
            return None

    def _named(self, limits: int) -> tuple[str, ...]:
        # older packages do not know the last two
        bits = {name: getattr(self._nvml, f"nvmlClocksThrottleReason{name}", 0) for name in _LIMITS}
        return tuple(_LIMITS[name] for name, bit in bits.items() if limits & bit)


def other_process_count(pids: Sequence[int], own_pid: int) -> int:
    """How many of the compute processes on a GPU are others, seen by one that holds a context on it.

    In a container NVML may know this process by the number that it has outside. Where its own number is missing, one of the
    processes is therefore still this one.
    """
    if own_pid in pids:
        return len(set(pids) - {own_pid})
    return max(len(set(pids)) - 1, 0)


@contextmanager
def watch_gpu(bus_id: Callable[[], str | None] = first_gpu_bus_id) -> Iterator[GpuWatch]:
    """Watch the GPU that CUDA counts as the first.

    Raises:
        MachineError: nvidia-ml-py is missing, or NVML does not work here; says why.
    """
    nvml = require("pynvml", needed_for="recording the GPU's clocks, temperature, power and processes")
    where = bus_id()
    if where is None:
        raise MachineError("the CUDA driver does not tell which GPU is the first one; see 'masksparse doctor'")
    try:
        nvml.nvmlInit()
    except nvml.NVMLError as error:
        raise MachineError(f"NVML does not work here: {error}") from error
    try:
        try:
            handle = nvml.nvmlDeviceGetHandleByPciBusId(where)
        except nvml.NVMLError as error:
            raise MachineError(f"NVML does not know the GPU {where}: {error}") from error
        yield GpuWatch(nvml, handle, own_pid=os.getpid())
    finally:
        nvml.nvmlShutdown()
