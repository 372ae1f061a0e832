"""The report of a sweep: the same two files timed with several batches and image sizes."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Record
from masksparse_deploy.core.artifacts.timing import EngineRatio, Speedup

__all__ = ["SweepPoint", "SweepReport"]


class SweepPoint(Record):
    """One batch of images of one size; `ratios` as in a profile report, where the backend has sparse tactics.

    `end_to_end` is the speedup with transfers, where there are any; `invalid_because` says why the figures must not be used.
    """

    batch: int
    height: int
    width: int
    dense_ms: float
    sparse_ms: float
    speedup: Speedup
    control: Speedup
    ratios: tuple[EngineRatio, ...]
    end_to_end: Speedup | None
    sparse_kernels: str
    invalid_because: tuple[str, ...]


class SweepReport(Document):
    """Points in ascending order of size and batch; the rest is the same for all of them.

    `options` are those of engines and timing that changed the figures; `architecture` is the GPU's, as "sm_90", "" where it is
    not told.
    """

    kind: ClassVar[str] = "sweep"

    dense_onnx_sha256: str
    sparse_onnx_sha256: str
    backend: str
    device: str
    versions: dict[str, str]
    options: dict[str, str]
    clock: str
    architecture: str = ""
    points: tuple[SweepPoint, ...]
