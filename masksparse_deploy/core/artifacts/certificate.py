"""The certificate: proved upper bounds, their method, their assumptions and the digests of what they are about."""

from pathlib import Path
from typing import Any, ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import canonical_json, sha256_bytes

__all__ = [
    "DATA_FREE",
    "END_TO_END",
    "HYBRID",
    "LAYERWISE",
    "MEASURED_NORMS",
    "MEASURED_RESIDUALS",
    "Certificate",
    "Claim",
    "LayerBound",
]

# The claims of a certificate by name, in this order; docs/bounds.md has their formulas.
LAYERWISE = "layerwise"
DATA_FREE = "end-to-end, data-free"
MEASURED_NORMS = "end-to-end, measured norms"
MEASURED_RESIDUALS = "end-to-end, measured residuals"
HYBRID = "end-to-end, hybrid"
END_TO_END = (DATA_FREE, MEASURED_NORMS, MEASURED_RESIDUALS, HYBRID)

_SEAL = "seal_sha256"


class LayerBound(Record):
    """Bounds for one masked layer; K is the dense folded kernel, K~ the sparse one, D = K - K~ what the sparse file changed.

    For every input x of the layer, ||K * x + b - (K~ * x + b~)|| <= difference_norm ||x|| + bias_difference sqrt(positions),
    with `bias_difference` = ||b - b~||. All norms are l2, unit-free.
    `removed_norm` bounds the operator norm of (1 - keep) K, what masking alone removes; it equals `difference_norm` when
    neither weights nor batch-norm statistics are new. `method` names the bound of docs/bounds.md that gave the minimum.

    Where positions of a layer are masked, the two sides are what `node` and the Where behind it give together, the tensor that
    is called as the output of `node` in the file without masks: at a position that one file does not compute, `difference_norm`
    and `removed_norm` count the other's whole kernel, and `bias_difference` is the largest over positions. `dense_norm` and
    `sparse_norm` are of the kernels everywhere.
    """

    layer: str
    node: str
    initializer: str
    removed_norm: float
    difference_norm: float
    dense_norm: float
    sparse_norm: float
    bias_difference: float
    output_positions: int
    method: str


class Claim(Record):
    """One statement that holds if the assumptions do.

    `bound` is None when the method proves nothing (then `status` is "inconclusive" and `detail` says why).
    `status` "vacuous" means: proved, but it certifies no sample; `tightness` is bound / measured where measured > 0.
    """

    name: str
    statement: str
    bound: float | None
    unit: str
    method: str
    assumptions: tuple[str, ...]
    status: Literal["useful", "vacuous", "inconclusive"]
    detail: str
    measured: float | None
    tightness: float | None
    certified_count: int | None
    sample_count: int | None


class Certificate(Document):
    """Rigorous upper bounds only: no estimate, sampled maximum or power-iteration value is in here.

    `grid` is the N of the N x N frequency grid of the norm bounds. `smallest` names the end-to-end claim with the smallest
    bound, the first of those that are equal; None if none has a bound. `unsupported` names operators that the network recursion
    does not cover; the end-to-end claims are then inconclusive. `seal_sha256` is the SHA-256 of the canonical JSON of kind,
    schema version and all other fields; make certificates with `sealed`.
    """

    kind: ClassVar[str] = "certificate"
    version: ClassVar[int] = 2

    dense_sha256: str
    sparse_sha256: str
    data_sha256: str
    grid: int
    layers: tuple[LayerBound, ...]
    claims: tuple[Claim, ...]
    smallest: str | None
    unsupported: tuple[str, ...]
    seal_sha256: str

    @classmethod
    def sealed(cls, **fields: Any) -> "Certificate":
        """A certificate of all `fields` but the seal, which is computed."""
        unsealed = cls(**fields, seal_sha256="")
        return unsealed.model_copy(update={_SEAL: unsealed.expected_seal()})

    def expected_seal(self) -> str:
        """What `seal_sha256` is if nothing was changed since it was made."""
        content = self.model_dump(mode="json", exclude={_SEAL})
        return sha256_bytes(canonical_json({"kind": self.kind, "schema_version": self.version, **content}))

    @classmethod
    def read(cls, path: Path) -> "Certificate":
        """Read and validate; raises UsageError for a missing file, ArtifactError for a damaged, foreign or changed one."""
        certificate = super().read(path)
        expected = certificate.expected_seal()
        if certificate.seal_sha256 != expected:
            raise ArtifactError(
                f"{path} was changed after it was made: its seal is {certificate.seal_sha256!r}, that of its content "
                f"{expected}; run 'masksparse certify' again"
            )
        return certificate
