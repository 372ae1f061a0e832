import ctypes
from collections.abc import Callable
from typing import Any

import pytest

from masksparse_deploy.engine.driver import query_driver


class FakeDriver:
    """A libcuda with one GPU of compute capability 9.0; `failures` maps functions to the error code they return."""

    def __init__(
        self, count: int = 1, failures: dict[str, int] | None = None, *, name: str = "Fake GPU", mode: int = 0, major: int = 9
    ) -> None:
        self.count = count
        self.name, self.mode, self.major = name, mode, major
        self.failures = failures or {}
        self.calls: list[str] = []

    def __getattr__(self, name: str) -> Callable[..., int]:
        if not name.startswith("cu"):
            raise AttributeError(name)

        def call(*arguments: Any) -> int:
            self.calls.append(name)
            if name in self.failures:
                return self.failures[name]
            values = {"cuDeviceGetCount": self.count, "cuDriverGetVersion": 12080, "cuDeviceTotalMem_v2": 80 << 30}
            if name in values:
                arguments[0]._obj.value = values[name]
            if name == "cuDeviceGetName":
                arguments[0].value = self.name.encode()
            if name == "cuDeviceGetAttribute":
                arguments[0]._obj.value = {75: self.major, 76: 0, 20: self.mode}[arguments[1]]
            return 0

        return call


def missing_library(name: str) -> Any:
    raise OSError(f"{name}: cannot open shared object file")


def test_a_gpu_is_described() -> None:
    answer = query_driver(lambda name: FakeDriver())
    assert answer.device is not None
    assert answer.reason == ""
    assert (answer.device.kind, answer.device.name) == ("cuda", "Fake GPU")
    assert answer.device.details == {
        "compute_capability": "9.0",
        "compute_mode": "default",
        "cuda_driver": "12.8",
        "device_count": "1",
        "memory_mib": str(80 << 10),
        "mig": "no",
        "sparse_tensor_cores": "yes",
    }


def test_what_limits_a_gpu_is_told() -> None:
    answer = query_driver(lambda name: FakeDriver(name="NVIDIA A100-SXM4-40GB MIG 1g.5gb", mode=3, major=8))
    assert answer.device is not None
    assert (answer.device.details["mig"], answer.device.details["compute_mode"]) == ("yes", "exclusive process")
    older = query_driver(lambda name: FakeDriver(major=7, mode=9)).device
    assert older is not None
    assert (older.details["sparse_tensor_cores"], older.details["compute_mode"]) == ("no", "9")


def test_the_driver_is_initialised_first() -> None:
    driver = FakeDriver()
    query_driver(lambda name: driver)
    assert driver.calls[0] == "cuInit"


def test_no_library() -> None:
    answer = query_driver(missing_library)
    assert answer.device is None
    assert "no NVIDIA driver found" in answer.reason


@pytest.mark.parametrize(
    "function", ["cuInit", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetName", "cuDriverGetVersion", "cuDeviceGetAttribute"]
)
def test_a_failing_call_is_named(function: str) -> None:
    answer = query_driver(lambda name: FakeDriver(failures={function: 100}))
    assert answer.device is None
    assert f"{function} returned error 100" in answer.reason


def test_a_driver_without_a_gpu() -> None:
    answer = query_driver(lambda name: FakeDriver(count=0))
    assert answer.device is None
    assert "reports no GPU" in answer.reason


def test_a_library_that_is_no_driver() -> None:
    answer = query_driver(lambda name: ctypes.CDLL(None))
    assert answer.device is None
    assert "is not a CUDA driver" in answer.reason
