"""Masks of positions for the networks of these tests, and an ONNX model with them baked in."""

from collections.abc import Mapping

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.positions import MaskPositions
from masksparse_deploy.bake.storage import to_proto
from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.core.positions import PositionMask

# Of make_onnx.residual_pair, for images of 8 x 8.
RESIDUAL_SIZES = {"layer1.conv1": (4, 4), "layer1.conv2": (4, 4), "layer2.conv1": (2, 2)}


def random_positions(
    sizes: Mapping[str, tuple[int, int]] = RESIDUAL_SIZES, *, rate: float = 0.5, seed: int = 0
) -> dict[str, PositionMask]:
    """Masks that drop round(rate * positions) of each layer, drawn at random; layer -> mask."""
    generator = np.random.default_rng(seed)
    masks = {}
    for layer, size in sizes.items():
        keep = np.ones(size, dtype=np.bool_)
        keep.reshape(-1)[generator.permutation(keep.size)[: round(rate * keep.size)]] = False
        masks[layer] = PositionMask(layer=layer, keep=keep)
    return masks


def with_positions(model: onnx.ModelProto, positions: Mapping[str, PositionMask]) -> onnx.ModelProto:
    """A copy of the model with the masks baked in; weights are called as their layers, plus ".weight"."""
    masks = MaskSet(layers={}, source_sha256="0" * 64, method="positions", positions=positions)
    copy = ir.from_proto(model)
    MaskPositions(masks)(copy)
    return to_proto(copy)
