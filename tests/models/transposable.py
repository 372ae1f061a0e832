"""Transposable masks for the tiny network, with new weights or without, and a fault that only shows in columns."""

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import nn

from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.transposable.solve import transposable_mask
from tests.models.tiny_cnn import MASKED_LAYERS, float_state, magnitude_masks

T24 = NMPattern(n=2, m=4, transposable=True)


def transposable_masks(model: nn.Module, *, new_weights: bool = False, new_statistics: bool = False) -> MaskSet:
    """T2:4 for MASKED_LAYERS; `new_weights` scales kept weights unevenly, and moves a bias and a layer without a mask."""
    state = float_state(model)
    layers = {
        name: LayerMask(weight_name=name, keep=transposable_mask(state[name], T24), group_axis=1, pattern=T24)
        for name in (f"{layer}.weight" for layer in MASKED_LAYERS)
    }
    weights = {}
    if new_weights:
        generator = np.random.default_rng(0)
        for name, mask in layers.items():
            factor = generator.uniform(0.5, 1.5, mask.keep.shape).astype(np.float32)
            weights[name] = np.where(mask.keep, state[name] * factor, np.float32(0))
        weights |= {"fc.bias": state["fc.bias"] + np.float32(0.25), "conv.weight": state["conv.weight"] * np.float32(1.125)}
    method = "sparse-training" if new_weights else "transposable"
    return replace(magnitude_masks(model, new_statistics=new_statistics), layers=layers, method=method, weights=weights)


def move_within_a_row(weight: npt.NDArray[np.floating]) -> npt.NDArray[np.floating]:
    """A copy with one kept weight moved along its group of input channels: rows stay 2:4, two columns do not."""
    moved = weight.copy()
    group = moved[0, :4].reshape(4, -1)[:, 0]
    kept, dropped = np.flatnonzero(group)[0], np.flatnonzero(group == 0)[0]
    group[[kept, dropped]] = group[[dropped, kept]]
    moved[0, :4].reshape(4, -1)[:, 0] = group
    return moved
