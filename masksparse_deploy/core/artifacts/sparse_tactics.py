"""Which layers of an engine run a sparse tactic, and why the others do not."""

from collections import Counter
from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["STATUSES", "Evidence", "Hint", "LayerStatus", "LayerTactic", "SparseTactics", "TacticTimes"]

LayerStatus = Literal["sparse", "dense was faster", "not eligible", "unknown"]
STATUSES: tuple[LayerStatus, ...] = ("sparse", "dense was faster", "not eligible", "unknown")
# What a statement rests on: the ONNX file proves it; TensorRT told it (inspector, log or options); NVIDIA documents it; or it
# is what was seen elsewhere, which is a guess about this engine.
Evidence = Literal["file", "builder", "documented", "rule of thumb"]


class Hint(Record):
    """What may be behind a status, and what to do about it."""

    text: str
    evidence: Evidence


class TacticTimes(Record):
    """A sparse and a dense tactic of one layer, and who timed them; None where one of the two was not timed.

    "builder": the fastest of each kind that the builder timed, alone and with the same formats of tensors. "profile": the whole
    layer in the engines with sparse tactics allowed and forbidden.
    """

    sparse_ms: float | None
    dense_ms: float | None
    source: Literal["builder", "profile"]


class LayerTactic(Record):
    """One layer with weights of the ONNX file, and what the engine made of it.

    `node`, `op`, `where` (the body of an If, Loop or Scan it lies in), `weight`, `shape` and `dtype` are as in the linter's
    report. `eligible`: operator and weights of the file allow sparse tactics. `reason` says why the status is as it is, resting
    on `evidence`; `action` what can be done, empty where nothing is to be done; `hints` are further causes.

    `engine_layer` is the engine's layer that computes the node, "" where none is found; `tactic` its kernel and `sums` the type
    that the kernel adds up in, both "" where not told. `dense_tactic` and `dense_sums` are those of the dense twin: of the same
    weights with sparse tactics forbidden if timed, else of the engine of the dense file. `coarser_sums`: the sparse tactic adds
    up in FP16 where its dense twin does in FP32, so that it rounds more. `median_ms` is the layer's time in the engine and
    `share` its share of all layers' times, None where not profiled.
    """

    node: str
    op: str
    where: str
    weight: str
    shape: tuple[int, ...]
    dtype: str
    eligible: bool
    status: LayerStatus
    reason: str
    evidence: Evidence
    action: str
    hints: tuple[Hint, ...]
    engine_layer: str
    tactic: str
    sums: str
    dense_tactic: str
    dense_sums: str
    coarser_sums: bool
    median_ms: float | None
    share: float | None
    times: tuple[TacticTimes, ...]


class SparseTactics(Document):
    """Every layer with weights of an ONNX file, with the tactic it got in an engine and why.

    `has_sparse_kernels`: whether the runtime has 2:4 kernels at all; None where it does not tell. `log`: what is there of the
    builder's log: "none", "names" (which layers are eligible and chosen) or "times" (of tactics, too). `findings` are
    contradictions between file, engine and log: one of them is not what the others were made of. `remarks` are what else a user
    should know. It says nothing about the speed of the whole network.
    """

    kind: ClassVar[str] = "sparse tactics report"

    source_sha256: str
    engine_sha256: str
    backend: str
    versions: dict[str, str]
    device: str
    architecture: str
    precision: str
    batch: int | None
    has_sparse_kernels: bool | None
    log: Literal["none", "names", "times"]
    layers: tuple[LayerTactic, ...]
    findings: tuple[str, ...]
    remarks: tuple[str, ...]

    @property
    def counts(self) -> dict[LayerStatus, int]:
        """How many layers have each status, in the order of `STATUSES`."""
        found = Counter(layer.status for layer in self.layers)
        return {status: found[status] for status in STATUSES}
