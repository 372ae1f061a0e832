"""What a file says of masked positions, recomputed from what it holds."""

from collections.abc import Iterator

import numpy as np

from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.graph.annotations import POSITIONS, POSITIONS_LAYER
from masksparse_deploy.graph.model import Array, WeightedLayer
from masksparse_deploy.graph.positions import MaskedPositions

__all__ = ["broken_claims"]


def broken_claims(layer: WeightedLayer, masked: MaskedPositions) -> Iterator[str]:
    """What the file says of a convolution's masked positions that does not hold, in words."""
    if masked.keep.all():
        yield f"the mask drops none of {masked.keep.size} positions"
    if not masked.keep.any():
        yield f"the mask keeps none of {masked.keep.size} positions"
        return
    digest = masked.where.metadata[POSITIONS]
    if not masked.layer:
        yield f"{POSITIONS_LAYER} is missing, so that {POSITIONS} cannot be recomputed"
    elif digest != PositionMask(layer=masked.layer, keep=masked.keep).digest:
        yield f"{POSITIONS} is not the digest of the mask of {masked.layer} that is there (another mask, or changed since)"
    bias: Array = np.zeros(masked.constant.shape, masked.constant.dtype) if layer.bias is None else layer.bias
    # Equal values: a bias that folding made 0 and the exporter left out is +0.0 here and may have been -0.0
    wrong = int(np.count_nonzero(masked.constant != bias)) if bias.shape == masked.constant.shape else masked.constant.size
    if wrong:
        yield f"dropped positions hold something else than the bias of {layer.node.name} in {wrong} of {bias.size} channels"
