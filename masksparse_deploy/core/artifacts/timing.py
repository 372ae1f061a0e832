"""The report of the profile stage."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Interval, Record

__all__ = ["EngineRole", "LayerTime", "Latency", "ProfileReport", "RunConditions", "Speedup"]

# The engines of a comparison: of the dense file; of the sparse file with sparse tactics forbidden; and with them allowed.
EngineRole = Literal["dense", "forbidden", "sparse"]


class Latency(Record):
    """Times of single inferences, warm-up excluded; `samples_ms` in the order they were taken."""

    median_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...]


class Speedup(Record):
    """dense_ms / sparse_ms: the median over rounds of the ratio within a round, with its confidence interval."""

    ratio: float
    interval: Interval


class RunConditions(Record):
    """Under what the times were taken; `batch` samples an inference."""

    batch: int
    threads: int
    warmup_count: int
    round_count: int
    inferences_per_round: int
    seed: int
    details: dict[str, str]


class LayerTime(Record):
    """One layer of one engine: the median of its times, and its share of all layers' times.

    `name` and `tactic` are the engine's, `onnx_nodes` what was merged into the layer; both are empty where not told.
    """

    engine: EngineRole
    name: str
    onnx_nodes: tuple[str, ...]
    tactic: str
    median_ms: float
    share: float


class ProfileReport(Document):
    """Dense and sparse engines timed in one process, interleaved in random order.

    `control` is the same ratio for the dense engine against itself: the noise floor of the run.
    `invalid_because` lists why the figures must not be used; empty for a valid run.
    """

    kind: ClassVar[str] = "profile report"

    dense_engine_sha256: str
    sparse_engine_sha256: str
    backend: str
    device: str
    dense: Latency
    sparse: Latency
    speedup: Speedup
    control: Speedup
    sparse_kernels: str
    conditions: RunConditions
    invalid_because: tuple[str, ...]
    layers: tuple[LayerTime, ...] = ()
