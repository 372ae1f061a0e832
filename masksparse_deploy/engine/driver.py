"""What the CUDA driver says, asked through ctypes before any TensorRT call.

TensorRT 8.6 takes the whole process down where there is no GPU, so that no exception can be waited for.
"""

import ctypes
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from masksparse_deploy.core.artifacts.engines import DeviceFacts

__all__ = ["DriverAnswer", "first_gpu_bus_id", "query_driver"]

_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
# CUdevice_attribute in cuda.h
_CAPABILITY_MAJOR, _CAPABILITY_MINOR, _COMPUTE_MODE = 75, 76, 20
# CUcomputemode in cuda.h
_COMPUTE_MODES = {0: "default", 2: "prohibited", 3: "exclusive process"}
# The first with tensor cores for 2:4 weights: Ampere.
_FIRST_SPARSE = (8, 0)
_NAME_BYTES = 256
_BUS_ID_BYTES = 32


@dataclass(frozen=True)
class DriverAnswer:
    """The first GPU, or None and a sentence that says why there is none."""

    device: DeviceFacts | None
    reason: str = ""


class _DriverCallError(Exception):
    """A driver call returned an error code."""


def query_driver(load: Callable[[str], Any] = ctypes.CDLL) -> DriverAnswer:
    """Facts about the first GPU, or why there is none; never raises.

    Args:
        load: opens a shared library by name; tests pass a stand-in.
    """
    try:
        driver = load(_LIBRARY)
    except OSError as error:
        return DriverAnswer(None, f"no NVIDIA driver found ({error})")
    try:
        return _first_gpu(driver)
    except _DriverCallError as error:
        return DriverAnswer(None, f"the NVIDIA driver is installed but does not work ({error})")
    except AttributeError as error:
        return DriverAnswer(None, f"{_LIBRARY} is not a CUDA driver ({error})")


def first_gpu_bus_id(load: Callable[[str], Any] = ctypes.CDLL) -> str | None:
    """The PCI bus id of the GPU that CUDA counts as the first, as "0000:3b:00.0"; None where there is none. Never raises.

    Tools that know nothing of CUDA_VISIBLE_DEVICES count GPUs in another order; they find it by this id.
    """
    try:
        driver = load(_LIBRARY)
        _call(driver, "cuInit", 0)
        device = ctypes.c_int()
        _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
        text = ctypes.create_string_buffer(_BUS_ID_BYTES)
        _call(driver, "cuDeviceGetPCIBusId", text, _BUS_ID_BYTES, device)
    except (OSError, AttributeError, _DriverCallError):
        return None
    return text.value.decode(errors="replace")


def _first_gpu(driver: Any) -> DriverAnswer:
    _call(driver, "cuInit", 0)
    count = ctypes.c_int()
    _call(driver, "cuDeviceGetCount", ctypes.byref(count))
    if count.value < 1:
        return DriverAnswer(None, "the NVIDIA driver reports no GPU (hidden by CUDA_VISIBLE_DEVICES or by the container?)")
    device = ctypes.c_int()
    _call(driver, "cuDeviceGet", ctypes.byref(device), 0)
    name = ctypes.create_string_buffer(_NAME_BYTES)
    _call(driver, "cuDeviceGetName", name, _NAME_BYTES, device)
    version = ctypes.c_int()
    _call(driver, "cuDriverGetVersion", ctypes.byref(version))
    memory = ctypes.c_size_t()
    _call(driver, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_attribute(driver, attribute, device) for attribute in (_CAPABILITY_MAJOR, _CAPABILITY_MINOR))
    mode = _attribute(driver, _COMPUTE_MODE, device)
    text = name.value.decode(errors="replace")
    details = {
        "compute_capability": f"{major}.{minor}",
        "compute_mode": _COMPUTE_MODES.get(mode, str(mode)),
        "cuda_driver": f"{version.value // 1000}.{version.value % 1000 // 10}",
        "device_count": str(count.value),
        "memory_mib": str(memory.value >> 20),
        "mig": "yes" if " MIG " in text else "no",  # the driver names a slice of a GPU so
        "sparse_tensor_cores": "yes" if (major, minor) >= _FIRST_SPARSE else "no",
    }
    return DriverAnswer(DeviceFacts(kind="cuda", name=text, details=details))


def _attribute(driver: Any, attribute: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _call(driver, "cuDeviceGetAttribute", ctypes.byref(value), attribute, device)
    return value.value


def _call(driver: Any, function: str, *arguments: Any) -> None:
    code = getattr(driver, function)(*arguments)
    if code != 0:
        raise _DriverCallError(f"{function} returned error {code}")
