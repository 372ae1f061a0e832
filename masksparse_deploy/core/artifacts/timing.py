"""The report of the profile stage."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Interval, Record
from masksparse_deploy.core.artifacts.gpu_state import GpuState

__all__ = [
    "BuildTime",
    "EndToEnd",
    "EngineRatio",
    "EngineRole",
    "Latency",
    "LayerTime",
    "ProfileReport",
    "RunConditions",
    "Speedup",
]

# The engines of a comparison: of the dense file; of the sparse file with sparse tactics forbidden; and with them allowed.
EngineRole = Literal["dense", "forbidden", "sparse"]


class Latency(Record):
    """Times of single inferences, warm-up excluded; `samples_ms` in the order they were taken, of all builds of an engine."""

    median_ms: float
    p90_ms: float
    p99_ms: float
    mean_ms: float
    throughput_per_s: float
    samples_ms: tuple[float, ...]


class Speedup(Record):
    """dense_ms / sparse_ms with its confidence interval.

    Of one build of each engine: the median over rounds of the ratio within a round. Of several: the median of the ratios
    of one build to another, and an interval that covers what builds differ by, too (`profiling.quotients`).
    """

    ratio: float
    interval: Interval


class EngineRatio(Record):
    """How many times as fast the engine `faster` runs as the engine `slower`; `conclusion` is what the interval allows to say.

    `of_builds` has the ratio of every build of `slower` to every build of `faster`, ascending.
    """

    slower: EngineRole
    faster: EngineRole
    ratio: float
    interval: Interval
    conclusion: Literal["faster", "slower", "not told apart"]
    of_builds: tuple[float, ...]


class BuildTime(Record):
    """One build of one engine, counted from 1."""

    engine: EngineRole
    number: int
    engine_sha256: str
    median_ms: float
    sparse_kernels: str


class EndToEnd(Record):
    """Wall-clock times of an inference with the copies to the device and back."""

    dense: Latency
    sparse: Latency
    speedup: Speedup


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

    `architecture` is the GPU's, as "sm_90", "" where it is not told.
    `clock` says what the times of `dense`, `forbidden`, `sparse`, `speedup`, `control` and `ratios` were taken with.
    `forbidden` is the sparse file without sparse tactics, where the backend has any; `builds` and `ratios` are there then.
    `layers` are those of the first build of each engine.
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
    architecture: str = ""
    clock: str = "wall clock"
    forbidden: Latency | None = None
    ratios: tuple[EngineRatio, ...] = ()
    builds: tuple[BuildTime, ...] = ()
    end_to_end: EndToEnd | None = None
    gpu: GpuState | None = None
    layers: tuple[LayerTime, ...] = ()
