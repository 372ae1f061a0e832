"""An engine on disk, and what is known about it."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["BackendStatus", "DeviceFacts", "EngineArtifact", "EngineLayer"]


class DeviceFacts(Record):
    """The device an engine was built for; `kind` is "cpu" or "cuda"."""

    kind: str
    name: str
    details: dict[str, str]

    @property
    def architecture(self) -> str:
        """Of a GPU, as "sm_90"; "" where it is not told."""
        capability = self.details.get("compute_capability", "")
        return f"sm_{capability.replace('.', '')}" if capability else ""


class EngineLayer(Record):
    """One layer of the engine; `is_sparse` is None where the runtime does not tell which kernel it uses.

    The rest is as TensorRT's inspector words it, empty or None where it does not tell: `layer_type` and `parameter_type`, the
    formats of `inputs` and `outputs`, `weight_dtype` and `weight_count` of the weights, `has_sparse_weights` (they allow a
    sparse tactic, which does not mean that it has one), the tactic's number `tactic_value`, and the auxiliary `stream` it runs
    on.
    """

    name: str
    onnx_nodes: tuple[str, ...]
    tactic: str
    is_sparse: bool | None
    reason: str
    layer_type: str = ""
    parameter_type: str = ""
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()
    weight_dtype: str = ""
    weight_count: int | None = None
    has_sparse_weights: bool | None = None
    tactic_value: str = ""
    stream: int | None = None


class EngineArtifact(Document):
    """Metadata beside a plan. `plan` is a file name in the same folder; `source_sha256` is the ONNX file's digest.

    `sparse_kernels` says in words whether sparse kernels are in use ("this runtime has no 2:4 kernels").
    `own_operators`: that file has operators that its dense twin has not, as it was rewritten or masks positions.
    `exposed` names the intermediate tensors that the engine returns besides the model's own outputs.
    `findings`: what the user should know about the build, as a precision that is not the file's.
    `timing_cache_sha256`: digest of the kernel times that the build began with, "" if it timed all kernels itself.
    `build_log`: name of the file with what the builder told about sparsity and tactics; "" where it told nothing.
    `refitted_from_sha256`: digest of the plan that this one was made from by new weights; "" for one that was built.
    """

    kind: ClassVar[str] = "engine"

    backend: str
    plan: str
    plan_sha256: str
    source_sha256: str
    precision: str
    options: dict[str, str | int | bool]
    versions: dict[str, str]
    device: DeviceFacts
    layers: tuple[EngineLayer, ...]
    exposed: tuple[str, ...]
    sparse_kernels: str
    own_operators: bool = False
    findings: tuple[str, ...] = ()
    build_seconds: float | None = None
    timing_cache_sha256: str = ""
    build_log: str = ""
    refitted_from_sha256: str = ""


class BackendStatus(Record):
    """Whether a backend works on this machine; `reason` says why not and what to do, empty when it does."""

    backend: str
    available: bool
    reason: str
    versions: dict[str, str]
    device: DeviceFacts | None
