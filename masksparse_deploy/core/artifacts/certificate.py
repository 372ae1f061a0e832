"""The certificate: proved upper bounds, their method, their assumptions and the digests of what they are about."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["Certificate", "Claim", "LayerBound"]


class LayerBound(Record):
    """Bounds for one masked layer; K is the dense folded kernel, K~ the sparse one, D = K - K~ what the sparse file changed.

    For every input x of the layer, ||K * x + b - (K~ * x + b~)|| <= difference_norm ||x|| + bias_difference sqrt(positions),
    with `bias_difference` = ||b - b~||. All norms are l2, unit-free.
    `removed_norm` bounds the operator norm of (1 - keep) K, what masking alone removes; it equals `difference_norm` when
    batch-norm statistics were not re-estimated. `method` names the bound of docs/bounds.md that gave the minimum.
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

    `unsupported` names operators that the network recursion does not cover; the end-to-end claims are then inconclusive.
    """

    kind: ClassVar[str] = "certificate"

    dense_sha256: str
    sparse_sha256: str
    data_sha256: str
    layers: tuple[LayerBound, ...]
    claims: tuple[Claim, ...]
    unsupported: tuple[str, ...]
