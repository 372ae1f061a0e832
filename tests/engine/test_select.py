from collections.abc import Callable
from types import SimpleNamespace

import pytest

from masksparse_deploy.core.errors import MachineError, UsageError
from masksparse_deploy.engine import onnxruntime_backend, select, tensorrt_backend
from masksparse_deploy.engine.driver import DriverAnswer
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.engine.select import all_statuses, choose_backend, get_backend
from masksparse_deploy.engine.tensorrt_backend import TensorRTBackend
from tests.engine.fake_tensorrt import GPU


@pytest.fixture
def with_driver(monkeypatch: pytest.MonkeyPatch) -> Callable[[DriverAnswer], None]:
    """Decide what the driver says, and have the packages installed."""

    def set_answer(answer: DriverAnswer) -> None:
        monkeypatch.setattr(select, "TensorRTBackend", lambda: TensorRTBackend(ask_driver=lambda: answer))
        monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: True)
        monkeypatch.setattr(tensorrt_backend, "installed_versions", lambda *names: {"cuda-bindings": "12.9.4"})
        monkeypatch.setattr(tensorrt_backend, "require", lambda name, needed_for: SimpleNamespace(__version__="8.6.0"))

    return set_answer


def test_backends_by_name() -> None:
    backends: list[Backend] = [get_backend(name) for name in ("onnxruntime", "tensorrt")]
    assert [backend.name for backend in backends] == ["onnxruntime", "tensorrt"]
    with pytest.raises(UsageError, match="did you mean 'tensorrt'"):
        get_backend("tensort")
    with pytest.raises(UsageError, match="choose one of: onnxruntime, tensorrt, onnxruntime-cuda"):
        get_backend("x")


def test_auto_takes_tensorrt_where_it_works(with_driver: Callable[[DriverAnswer], None]) -> None:
    with_driver(GPU)
    backend, why = choose_backend("auto")
    assert backend.name == "tensorrt"
    assert why == "TensorRT 8.6.0 on Fake GPU, found on this machine"


def test_auto_falls_back_where_tensorrt_is_there_but_broken(
    with_driver: Callable[[DriverAnswer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(name: str, needed_for: str) -> None:
        raise MachineError(f"{name} is needed for {needed_for} and could not be imported (ImportError: libnvinfer.so.10)")

    with_driver(GPU)
    monkeypatch.setattr(tensorrt_backend, "require", broken)
    backend, why = choose_backend("auto")
    assert backend.name == "onnxruntime"
    assert "TensorRT does not work here: tensorrt is needed for building and running TensorRT engines" in why


def test_auto_falls_back_and_says_why(with_driver: Callable[[DriverAnswer], None]) -> None:
    with_driver(DriverAnswer(None, "the NVIDIA driver reports no GPU"))
    backend, why = choose_backend("auto")
    assert backend.name == "onnxruntime"
    assert "on CPU; TensorRT does not work here: the NVIDIA driver reports no GPU" in why
    assert "masksparse doctor" in why


def test_auto_never_takes_another_provider(
    with_driver: Callable[[DriverAnswer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    with_driver(GPU)
    monkeypatch.setattr(tensorrt_backend, "is_installed", lambda name: name != "tensorrt")
    backend, why = choose_backend("auto")
    assert backend.name == "onnxruntime"
    assert "on CPU; TensorRT does not work here: not installed: tensorrt" in why


def test_what_is_asked_for_is_not_replaced(with_driver: Callable[[DriverAnswer], None]) -> None:
    with_driver(DriverAnswer(None, "no GPU"))
    with pytest.raises(MachineError, match="no GPU"):
        choose_backend("tensorrt")
    backend, why = choose_backend("onnxruntime")
    assert backend.name == "onnxruntime"
    assert why.endswith("as configured")


def test_nothing_works(with_driver: Callable[[DriverAnswer], None], monkeypatch: pytest.MonkeyPatch) -> None:
    with_driver(DriverAnswer(None, "no GPU"))

    def missing(*names: str, **_: str) -> None:
        raise MachineError("onnxruntime is broken")

    monkeypatch.setattr(onnxruntime_backend, "require", missing)
    with pytest.raises(MachineError, match=r"no GPU.*onnxruntime is broken"):
        choose_backend("auto")
    assert [status.available for status in all_statuses()] == [False] * 4


def test_statuses_name_versions() -> None:
    statuses = {status.backend: status for status in all_statuses()}
    assert set(statuses) == {"onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt"}
    assert statuses["onnxruntime"].available
    assert statuses["onnxruntime"].versions["onnxruntime"]
    assert all(status.available == (status.reason == "") for status in statuses.values())
