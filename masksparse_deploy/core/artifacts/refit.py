"""The report of new weights in an engine that was built before."""

from typing import ClassVar

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["RefitReport", "RemaskedLayer"]


class RemaskedLayer(Record):
    """A masked layer: `zeroed_count` of its `weight_count` new weights were not zero where the old file has a zero."""

    node: str
    zeroed_count: int
    weight_count: int


class RefitReport(Document):
    """What was put into which engine, and how its outputs compare with the reference.

    `engine` is the new engine's metadata, `onnx` the re-masked file with the weights it holds, in the same folder; `rebuilt`
    says that the backend cannot change weights and built anew. Digests: the old engine's file and plan, the new file as given
    and as re-masked, and the new plan. `relative_error` is the root mean square of the difference between the engine's outputs
    and those of `reference`, over that of the latter, for `image_count` random images; it is at most `tolerance`.
    `relative_change` is the same measure between the outputs of the old file and the new one: where it is not above the
    tolerance, the check could not have told an engine that kept its old weights, and `findings` says so.
    """

    kind: ClassVar[str] = "refit"

    backend: str
    rebuilt: bool
    engine: str
    onnx: str
    old_source_sha256: str
    old_plan_sha256: str
    new_source_sha256: str
    remasked_sha256: str
    plan_sha256: str
    layers: tuple[RemaskedLayer, ...]
    changed_tensors: tuple[str, ...]
    reference: str
    image_count: int
    relative_error: float
    relative_change: float
    tolerance: float
    seconds: float
    findings: tuple[str, ...]
