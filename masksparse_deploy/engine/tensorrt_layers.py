"""The times of an engine's layers, as TensorRT's profiler reports them."""

from typing import Any, Protocol

__all__ = ["LayerRecorder", "layer_recorder"]


class LayerRecorder(Protocol):
    """Collects what TensorRT tells; `begin` before each inference."""

    def begin(self) -> None:
        """The next inference starts."""

    def times_ms(self) -> dict[str, tuple[float, ...]]:
        """For each layer one time for each inference in which it ran, in milliseconds, in the order of the first inference."""


def layer_recorder(trt: Any) -> LayerRecorder:
    """An object for `IExecutionContext.profiler`; made here, as its base class comes with TensorRT.

    A layer that runs several times in an inference, as the body of a loop does, is told several times: its times are added.
    """

    class Recorder(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)  # the bindings ask for the explicit call
            self.inferences: list[dict[str, float]] = []

        def begin(self) -> None:
            self.inferences.append({})

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            current = self.inferences[-1]
            current[layer_name] = current.get(layer_name, 0.0) + ms

        def times_ms(self) -> dict[str, tuple[float, ...]]:
            names = dict.fromkeys(name for inference in self.inferences for name in inference)
            return {name: tuple(found[name] for found in self.inferences if name in found) for name in names}

    recorder: LayerRecorder = Recorder()
    return recorder
