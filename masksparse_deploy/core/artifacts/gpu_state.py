"""What a GPU was doing while something was timed on it."""

from typing import Literal

from masksparse_deploy.core.artifacts.document import Record

__all__ = ["GpuReading", "GpuState"]


class GpuReading(Record):
    """One look at the GPU; None where the driver does not tell.

    `clock_limits` are the driver's reasons for clocks below the highest ones. `other_process_count` counts compute processes
    besides the one that reads.
    """

    when: Literal["start", "during", "end"]
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    temperature_c: int | None
    power_w: float | None
    clock_limits: tuple[str, ...] | None
    other_process_count: int | None


class GpuState(Record):
    """Readings in the order they were taken, and what does not change meanwhile; None where the driver does not tell."""

    driver_version: str | None
    highest_sm_clock_mhz: int | None
    highest_memory_clock_mhz: int | None
    power_limit_w: float | None
    persistence_mode: bool | None
    mig: bool | None
    readings: tuple[GpuReading, ...]

    @property
    def under_load(self) -> tuple[GpuReading, ...]:
        """The readings between rounds, without those before and after, when clocks may be low as nothing runs."""
        return tuple(reading for reading in self.readings if reading.when == "during")
