"""An engine on disk, and what is known about it."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["BackendStatus", "DeviceFacts", "EngineArtifact", "EngineLayer"]


class DeviceFacts(Record):
    """The device an engine was built for; `kind` is "cpu" or "cuda"."""

    kind: str
    name: str
    details: dict[str, str]


class EngineLayer(Record):
    """One layer of the engine; `is_sparse` is None where the runtime does not tell which kernel it uses."""

    name: str
    onnx_nodes: tuple[str, ...]
    tactic: str
    is_sparse: bool | None
    reason: str


class EngineArtifact(Document):
    """Metadata beside a plan. `plan` is a file name in the same folder; `source_sha256` is the ONNX file's digest.

    `sparse_kernels` says in words whether sparse kernels are in use ("this runtime has no 2:4 kernels").
    `own_operators`: that file has operators that its dense twin has not, as it was rewritten or masks positions.
    `exposed` names the intermediate tensors that the engine returns besides the model's own outputs.
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


class BackendStatus(Record):
    """Whether a backend works on this machine; `reason` says why not and what to do, empty when it does."""

    backend: str
    available: bool
    reason: str
    versions: dict[str, str]
    device: DeviceFacts | None
