"""A stand-in for pynvml with the names that the reader uses; what it tells can be changed."""

from types import SimpleNamespace
from typing import Any


class FakeNvml:
    """One GPU at "0000:3b:00.0". `refused` names functions that this GPU does not support."""

    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_FEATURE_ENABLED = 1
    NVML_DEVICE_MIG_ENABLE = 1
    nvmlClocksThrottleReasonGpuIdle = 0x1  # noqa: N815
    nvmlClocksThrottleReasonApplicationsClocksSetting = 0x2  # noqa: N815
    nvmlClocksThrottleReasonSwPowerCap = 0x4  # noqa: N815
    nvmlClocksThrottleReasonHwSlowdown = 0x8  # noqa: N815
    nvmlClocksThrottleReasonSyncBoost = 0x10  # noqa: N815
    nvmlClocksThrottleReasonSwThermalSlowdown = 0x20  # noqa: N815
    nvmlClocksThrottleReasonHwThermalSlowdown = 0x40  # noqa: N815
    nvmlClocksThrottleReasonHwPowerBrakeSlowdown = 0x80  # noqa: N815
    nvmlClocksThrottleReasonDisplayClockSetting = 0x100  # noqa: N815
    nvmlClocksThrottleReasonBoardLimit = 0x200  # noqa: N815
    nvmlClocksThrottleReasonReliability = 0x400  # noqa: N815

    class NVMLError(Exception):
        """As pynvml's base class of errors."""

    def __init__(self) -> None:
        self.refused: set[str] = set()
        self.limits = 0
        self.pids: list[int] = []
        self.open_count = 0

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("nvml") and name in object.__getattribute__(self, "refused"):
            return self._refuse
        return object.__getattribute__(self, name)

    def _refuse(self, *_: Any) -> Any:
        raise self.NVMLError("Not Supported")

    def nvmlInit(self) -> None:  # noqa: N802
        self.open_count += 1

    def nvmlShutdown(self) -> None:  # noqa: N802
        self.open_count -= 1

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.82"

    def nvmlDeviceGetHandleByPciBusId(self, bus_id: str) -> str:  # noqa: N802
        if bus_id != "0000:3b:00.0":
            raise self.NVMLError("Not Found")
        return "gpu"

    def nvmlDeviceGetClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 1500, 2: 2600}[kind]

    def nvmlDeviceGetMaxClockInfo(self, handle: str, kind: int) -> int:  # noqa: N802
        return {1: 1980, 2: 2619}[kind]

    def nvmlDeviceGetTemperature(self, handle: str, sensor: int) -> int:  # noqa: N802
        return 55

    def nvmlDeviceGetPowerUsage(self, handle: str) -> int:  # noqa: N802
        return 312_500

    def nvmlDeviceGetEnforcedPowerLimit(self, handle: str) -> int:  # noqa: N802
        return 700_000

    def nvmlDeviceGetCurrentClocksThrottleReasons(self, handle: str) -> int:  # noqa: N802
        return self.limits

    def nvmlDeviceGetComputeRunningProcesses(self, handle: str) -> list[Any]:  # noqa: N802
        return [SimpleNamespace(pid=pid, usedGpuMemory=1 << 20) for pid in self.pids]

    def nvmlDeviceGetPersistenceMode(self, handle: str) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetMigMode(self, handle: str) -> list[int]:  # noqa: N802
        return [0, 1]
