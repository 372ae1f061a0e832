"""What a block of a 1xN layer is worth: its magnitude, or what of it the other blocks of its group do not hold already."""

from typing import Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Criterion", "block_norms", "block_scores", "redundancy"]

Criterion = Literal["bpar", "l1"]

# Below the smallest normal float64, so that a norm of zero divides zeros only.
_TINY = 1e-300


def block_scores(weight: npt.NDArray[np.floating], n: int, criterion: Criterion) -> npt.NDArray[np.float64]:
    """The score of every block W_c of a group of output channels.

    "l1": ||W_c||_1. "bpar", block pruning by angular redundancy (Xiang et al. 2023, section 3): the block's share of the
    group's L1 norm less its share of the group's redundancy, ||W_c||_1 / sum ||.||_1 - alpha R_c / sum R with alpha = 1.
    Blocks that are zero score lowest of all: 0 and -1.

    Args:
        weight: (out_channels, in_channels, ...), zero where it is dropped; out_channels is a multiple of N.
        n: output channels of a block.
        criterion: which score.

    Returns:
        float64 (out_channels / N, in_channels).
    """
    norms = block_norms(weight, n)
    if criterion == "l1":
        return norms
    shares = norms / np.maximum(norms.sum(axis=1, keepdims=True), _TINY)
    repeated = redundancy(weight, n)
    # As in the authors' code, a block of zeros counts as all of the redundancy.
    of_redundancy = np.where(repeated > 0, repeated / np.maximum(repeated.sum(axis=1, keepdims=True), _TINY), 1.0)
    return np.asarray(shares - of_redundancy)


def block_norms(weight: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.float64]:
    """||W_c||_1 of every block, float64 (out_channels / N, in_channels); arguments are those of `block_scores`."""
    return np.asarray(np.abs(_blocks(weight, n)).sum(axis=2))


def redundancy(weight: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.float64]:
    """R_c = sum over the blocks c' of the group of |cos(W_c, W_c')|, c itself included; 0 for a block of zeros.

    Arguments and shape are those of `block_scores`.
    """
    blocks = _blocks(weight, n)
    directions = blocks / np.maximum(np.linalg.norm(blocks, axis=2, keepdims=True), _TINY)
    return np.asarray(np.abs(directions @ directions.transpose(0, 2, 1)).sum(axis=2))


def _blocks(weight: npt.NDArray[np.floating], n: int) -> npt.NDArray[np.float64]:
    """float64 (groups, in_channels, weights of a block)."""
    out_channels, in_channels = weight.shape[:2]
    grouped = weight.astype(np.float64).reshape(out_channels // n, n, in_channels, -1)
    return grouped.transpose(0, 2, 1, 3).reshape(out_channels // n, in_channels, -1)
