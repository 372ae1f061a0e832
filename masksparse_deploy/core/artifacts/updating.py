"""The report of an update: new weights under masks that were there, and what stays guaranteed."""

from typing import ClassVar, Literal

from masksparse_deploy.core.artifacts.document import Document, Record

__all__ = ["ComparedClaim", "Comparison", "LayerBudget", "MaskFit", "UpdateReport", "UpdatedLayer"]


class ComparedClaim(Record):
    """One end-to-end claim of a comparison, by its name in the certificate.

    `direct` is the bound of the recursion on the two files, `triangle` the sum of the bounds against the old masked network and
    of the old certificate, both None where nothing is proved; `bound` is the smaller. `measured` is the largest distance on the
    samples.
    """

    name: str
    direct: float | None
    triangle: float | None
    measured: float | None

    @property
    def bound(self) -> float | None:
        """The smaller of the two."""
        return min((value for value in (self.direct, self.triangle) if value is not None), default=None)


class Comparison(Record):
    """How far the new masked network can be from another one; `certificate` is the file with all that is proved of it.

    `layerwise` is the largest bound of a layer, output l2 per input l2; `layerwise_measured` what the samples showed of it.
    """

    against: Literal["dense, new weights", "masked, old weights", "dense, old weights"]
    certificate: str
    certificate_sha256: str
    layerwise: float | None
    layerwise_measured: float | None
    claims: tuple[ComparedClaim, ...]


class LayerBudget(Record):
    """How far one layer may move from where it is while a claim keeps its limit; docs/bounds.md proves it.

    `layerwise_limit` is the limit of the layer's difference_norm, `layerwise` the budget that keeps it: any ||D||_F of the
    dense and of the sparse file's kernel up to it. `spread` times the budget is how far the difference of the two may move.
    None: no limit, because masking does not touch the layer. `end_to_end` is the budget that keeps the data-free claim if all
    layers keep theirs, `end_to_end_offset` that of the bias, l2; None where that claim has no bound.
    """

    spread: int
    layerwise_limit: float | None
    layerwise: float | None
    end_to_end: float | None
    end_to_end_offset: float | None


class UpdatedLayer(Record):
    """One layer before and after. K is the kernel in the file, batch norm folded in; all norms are l2 or Frobenius.

    `weight_norm` is ||K||_F of the old dense file. `dense_update` and `sparse_update` are ||D||_F of either file,
    `difference_update` that of the difference of the two, `offset_update` the larger l2 change of the bias.
    `removed_norm_old` and `removed_norm_new` bound the operator norm of what the mask removes; `removed_norm_sum` is the first
    plus the norm of what the update adds to it, `removed_norm_frobenius` the same with a Frobenius norm for the second. They
    are None where no mask is.
    `difference_norm_old` and `difference_norm_new` are the layerwise bounds of the two certificates, None where there is none.
    `within_layerwise` and `within_end_to_end` hold the update against the old certificate's `budget`; `next_budget` is the new
    certificate's.
    """

    layer: str
    node: str
    weight_norm: float
    dense_update: float
    sparse_update: float
    difference_update: float
    offset_update: float
    removed_norm_old: float | None
    removed_norm_new: float | None
    removed_norm_sum: float | None
    removed_norm_frobenius: float | None
    difference_norm_old: float | None
    difference_norm_new: float | None
    budget: LayerBudget
    next_budget: LayerBudget
    within_layerwise: bool
    within_end_to_end: bool | None


class MaskFit(Record):
    """How well the old mask suits the weights: what it keeps over what the best mask of the pattern keeps, at most 1.

    `norm` is of ||W||_F, `magnitude` of the sum of |W|, on the new weights; `_before` on the old ones, None if the old
    checkpoint is no longer there. `aged`: `norm` fell by more than the threshold.
    """

    layer: str
    pattern: str
    norm: float
    magnitude: float
    norm_before: float | None
    magnitude_before: float | None
    aged: bool | None


class UpdateReport(Document):
    """What an update did, and what is still guaranteed without learning masks again.

    Digests are those of the ONNX files; `masks_old_sha256` and `masks_new_sha256` of the mask sets, which have the same masks.
    `statistics` tells where the batch-norm statistics of the sparse file come from. `growth` is the share by which bounds may
    grow within the budget. `end_to_end_old` is the old data-free bound, `end_to_end_limit` what the budget keeps it within, for
    inputs up to the norm `radius`; `end_to_end_share` the budget of each layer over ||K||_F, `other_changes` the operators
    whose changed constants no budget covers. `within_*` are None where there is no budget. What was computed anew:
    `end_to_end_new` is the data-free bound, `grown` the layers whose bound is more than `growth` above the old one. The last of
    `masks` is the whole network.
    """

    kind: ClassVar[str] = "update report"

    dense_old_sha256: str
    sparse_old_sha256: str
    dense_new_sha256: str
    sparse_new_sha256: str
    masks_old_sha256: str
    masks_new_sha256: str
    data_sha256: str
    statistics: Literal["re-estimated", "kept", "the checkpoint's"]
    remarks: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    growth: float
    radius: float
    end_to_end_old: float | None
    end_to_end_limit: float | None
    end_to_end_share: float | None
    end_to_end_new: float | None
    other_changes: tuple[str, ...]
    grown: tuple[str, ...]
    within_layerwise: bool
    within_end_to_end: bool | None
    layers: tuple[UpdatedLayer, ...]
    masks: tuple[MaskFit, ...]
    relearn_points: float
    relearn: bool | None
    advice: str
    dense_correct_old: int | None
    sparse_correct_old: int | None
    dense_correct_new: int
    sparse_correct_new: int
    sample_count: int
