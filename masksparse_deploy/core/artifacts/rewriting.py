"""The report of the rewrite stage."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Interval, Record

__all__ = ["FewerOutputs", "LayerForm", "LayerRewrite", "RewriteReport", "TimedForm"]

LayerForm = Literal["dense", "gathered", "rows"]


class TimedForm(Record):
    """One form of a layer and the median time of an inference of it; `from_cache` if it was timed in an earlier run.

    `variant` tells forms of the same name apart, as "16 channels a group"; "" for the plain one. The time is that of the layer
    between a cheap convolution and a pooling.
    """

    form: LayerForm
    variant: str = ""
    median_ms: float
    from_cache: bool


class LayerRewrite(Record):
    """What became of one layer: its form in the rewritten file, the times of all forms, and why.

    "dense": as in the sparse file, zeros included. "gathered": a Gather of input channels and a grouped convolution over them.
    "rows": a Gather of rows, one for each output position, and a matrix product. `density` is the share of the dense layer's
    multiply-accumulates that the pattern keeps, `computed_density` the share that the rewritten file computes. `ideal` is
    1 / density, `speedup` of the chosen form over the dense one with its interval; None where nothing was timed.
    """

    node: str
    pattern: str
    form: LayerForm
    reason: str
    density: float
    computed_density: float
    ideal: float
    times: tuple[TimedForm, ...]
    speedup: float | None
    interval: Interval | None


class FewerOutputs(Record):
    """A convolution of which the rewritten file computes only `computed_channels` of its `output_channels`.

    Nobody reads the others.
    """

    node: str
    output_channels: int
    computed_channels: int


class RewriteReport(Document):
    """A sparse file brought into a form that stock runtimes run faster, for the machine it was timed on.

    `rewritten_sha256` is None where there was nothing to rewrite, or nothing got faster: engines are then built from the
    sparse file.
    `speedup` is the sparse file's time over the rewritten file's, as whole networks, None where that was not timed.
    `fewer_outputs` are the convolutions without output channels that nobody reads, empty where the network is not faster so.
    `remarks` are what else a user should know.
    """

    kind: ClassVar[str] = "rewrite report"

    sparse_sha256: str
    rewritten_sha256: str | None
    backend: str
    device: str
    versions: dict[str, str]
    batch: int
    threads: int
    channel_block: int
    layers: tuple[LayerRewrite, ...]
    fewer_outputs: tuple[FewerOutputs, ...] = ()
    speedup: float | None
    interval: Interval | None
    remarks: tuple[str, ...]
