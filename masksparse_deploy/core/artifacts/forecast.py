"""What sparse kernels would bring a network, estimated before any training."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Interval, Record
from masksparse_deploy.core.artifacts.timing import Speedup

__all__ = ["ConvolutionKind", "Forecast", "KindForecast"]


class ConvolutionKind(Record):
    """What decides how long a convolution takes, besides the batch.

    `kernel`, `strides` and `dilations` are (height, width), `pads` (top, left, bottom, right); `height` and `width` are the
    input's. `precision` is that of the products: "fp16" or "int8".
    """

    kernel: tuple[int, int]
    strides: tuple[int, int]
    dilations: tuple[int, int]
    pads: tuple[int, int, int, int]
    in_channels: int
    out_channels: int
    height: int
    width: int
    precision: str

    def __str__(self) -> str:
        """As "3x3 stride 2, 64 to 128 channels, 56x56, fp16"."""
        height, width = self.strides
        stride = "" if self.strides == (1, 1) else f" stride {height}" if height == width else f" stride {height}x{width}"
        dilation = "" if self.dilations == (1, 1) else f" dilation {self.dilations[0]}x{self.dilations[1]}"
        return (
            f"{self.kernel[0]}x{self.kernel[1]}{stride}{dilation}, {self.in_channels} to {self.out_channels} channels, "
            f"{self.height}x{self.width}, {self.precision}"
        )


class KindForecast(Record):
    """The layers of one kind, and what a sparse kernel gains each of them.

    `dense_ms` and `sparse_ms` are medians of the layer between a cheap convolution and a pooling, with the same 2:4 weights:
    sparse tactics forbidden, and allowed. `gain_ms` is what one layer gains, with the interval of that median difference; 0,
    without one, where the builder kept a dense tactic (`picked` is False). `picked` is None where the runtime does not tell.
    `failure` says why the kind was not timed; its layers then count as dense. `from_cache`: timed in an earlier run.
    """

    kind: ConvolutionKind
    layers: tuple[str, ...]
    dense_ms: float | None = None
    sparse_ms: float | None = None
    gain_ms: float = 0.0
    gain_interval: Interval | None = None
    dense_tactic: str = ""
    sparse_tactic: str = ""
    picked: bool | None = None
    from_cache: bool = False
    failure: str = ""


class Forecast(Document):
    """An estimate of the speedup by 2:4 weights, before they exist; nothing in it is a bound.

    `network_ms` is the network as it is, sparse tactics forbidden; None where nothing was timed. `estimate` is
    network_ms / (network_ms - the gains of all layers); its interval covers the noise of the timing, and not what layers do to
    one another in a network. `trial` is measured: the network itself, half of each eligible layer's weights cut without regard
    to accuracy, sparse tactics allowed, against the network as it is, one build of each. `worthwhile` says whether `threshold`
    may be reached, and `reason` why; `skipped` why layers were left out, by name. `architecture` is the GPU's, as "sm_90", ""
    where it is not told.
    """

    kind: ClassVar[str] = "forecast"

    source_sha256: str
    backend: str
    device: str
    architecture: str = ""
    versions: dict[str, str]
    precision: str
    batch: int
    threshold: float
    network_ms: float | None
    kinds: tuple[KindForecast, ...]
    skipped: dict[str, str]
    estimate: Speedup | None
    trial: Speedup | None
    worthwhile: bool
    reason: str
    remarks: tuple[str, ...]
