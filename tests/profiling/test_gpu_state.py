"""The GPU's state from a stand-in for NVML, and what it tells about a run."""

import ctypes
import importlib.util
import os

import pytest

from masksparse_deploy.core.errors import MachineError
from masksparse_deploy.engine.driver import first_gpu_bus_id
from masksparse_deploy.profiling import gpu_state
from masksparse_deploy.profiling.gpu_checks import check_shared, check_throttled
from masksparse_deploy.profiling.gpu_state import GpuWatch, other_process_count, watch_gpu
from tests.profiling.fake_nvml import FakeNvml

OWN = os.getpid()


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> FakeNvml:
    module = FakeNvml()
    module.pids = [OWN]
    monkeypatch.setattr(gpu_state, "require", lambda name, needed_for: module)
    return module


def watched(nvml: FakeNvml) -> GpuWatch:
    watch = GpuWatch(nvml, "gpu", own_pid=OWN)
    watch.read("start")
    watch.read("during")
    return watch


def test_readings(nvml: FakeNvml) -> None:
    with watch_gpu(lambda: "0000:3b:00.0") as watch:
        watch.read("start")
        state = watch.state
        assert nvml.open_count == 1
    assert nvml.open_count == 0
    (reading,) = state.readings
    assert (reading.sm_clock_mhz, reading.memory_clock_mhz, reading.temperature_c, reading.power_w) == (1500, 2600, 55, 312.5)
    assert (reading.clock_limits, reading.other_process_count) == ((), 0)
    assert (state.highest_sm_clock_mhz, state.power_limit_w, state.driver_version) == (1980, 700.0, "580.82")
    assert state.persistence_mode is True
    assert state.mig is False  # pending only
    assert check_throttled(state) is None
    assert check_shared(state) is None


def test_what_the_gpu_does_not_tell_is_left_out(nvml: FakeNvml) -> None:
    told = set(vars(FakeNvml)) - {"nvmlInit", "nvmlShutdown"}
    nvml.refused = {name for name in told if name.startswith(("nvmlDevice", "nvmlSystem"))}
    state = watched(nvml).state
    assert set(state.readings[0].model_dump(exclude={"when"}).values()) == {None}
    assert set(state.model_dump(exclude={"readings"}).values()) == {None}
    assert check_throttled(state) is None
    assert check_shared(state) is None


@pytest.mark.parametrize(
    ("limits", "named"),
    [
        (0x4, "power cap"),
        (0x8, "hardware slowdown"),
        (0x60, "heat (hardware), heat (software)"),
        (0x80, "power brake"),
        (0x200, "board limit"),
    ],
)
def test_a_gpu_that_throttles_is_reported(nvml: FakeNvml, limits: int, named: str) -> None:
    watch = watched(nvml)
    nvml.limits = limits
    watch.read("end")
    message = check_throttled(watch.state)
    assert message is not None
    assert f"throttled in 1 of 3 readings ({named}; clocks between 1500 and 1500 MHz of at most 1980)" in message


@pytest.mark.parametrize("limits", [0x1, 0x2, 0x10, 0x100, 0x400])
def test_settings_and_idleness_are_no_throttling(nvml: FakeNvml, limits: int) -> None:
    nvml.limits = limits
    state = watched(nvml).state
    assert len(state.readings[0].clock_limits or ()) == 1
    assert check_throttled(state) is None


def test_a_shared_gpu_is_reported(nvml: FakeNvml) -> None:
    watch = watched(nvml)
    nvml.pids = [OWN, OWN + 1, OWN + 2]
    watch.read("end")
    message = check_shared(watch.state)
    assert message is not None
    assert "up to 2 other compute processes were on the GPU, seen in 1 of 3 readings" in message


@pytest.mark.parametrize(("pids", "count"), [([7], 0), ([7, 8, 9], 2), ([7, 7], 0), ([8], 0), ([8, 9], 1), ([], 0)], ids=str)
def test_other_processes(pids: list[int], count: int) -> None:
    """The last three: in a container, where this process has another number outside, or none is shown."""
    assert other_process_count(pids, 7) == count


def test_nvml_that_does_not_work(nvml: FakeNvml) -> None:
    with (
        pytest.raises(MachineError, match=r"does not know the GPU 0000:99:00\.0: Not Found"),
        watch_gpu(lambda: "0000:99:00.0"),
    ):
        pass
    assert nvml.open_count == 0
    with pytest.raises(MachineError, match="which GPU is the first one"), watch_gpu(lambda: None):
        pass
    nvml.refused = {"nvmlInit"}
    with pytest.raises(MachineError, match="NVML does not work here: Not Supported"), watch_gpu(lambda: "0000:3b:00.0"):
        pass


def test_the_bus_id_comes_from_the_driver() -> None:
    class Driver:
        def cuInit(self, flags: int) -> int:  # noqa: N802
            return 0

        def cuDeviceGet(self, device: object, index: int) -> int:  # noqa: N802
            return 0

        def cuDeviceGetPCIBusId(self, text: ctypes.Array[ctypes.c_char], size: int, device: object) -> int:  # noqa: N802
            text.value = b"0000:3b:00.0"
            return 0

    def missing(name: str) -> object:
        raise OSError(name)

    assert first_gpu_bus_id(lambda name: Driver()) == "0000:3b:00.0"
    assert first_gpu_bus_id(missing) is None
    Driver.cuInit = lambda self, flags: 100  # type: ignore[method-assign]
    assert first_gpu_bus_id(lambda name: Driver()) is None


@pytest.mark.skipif(importlib.util.find_spec("pynvml") is None, reason="nvidia-ml-py (extra gpu) is not installed")
def test_the_stand_in_has_only_names_of_the_real_package() -> None:
    real = importlib.import_module("pynvml")
    names = {name for name in vars(FakeNvml) if name.lower().startswith("nvml")}
    assert {name for name in names if not hasattr(real, name)} == set()
