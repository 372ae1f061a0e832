"""Are the kernels in a written file the trained ones? Names alone do not prove it: an exporter may store what it likes."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.masks import MaskSet
from masksparse_deploy.graph.model import Graph

__all__ = ["changed_kept_weights", "foreign_kernels"]

# Folding rounds every weight once, to within 2^-24 of itself, and so does the factor that is fitted here.
_ROUNDING = 2.0**-20


def foreign_kernels(graph: Graph, trained: Mapping[str, npt.NDArray[np.float32]]) -> tuple[str, ...]:
    """Names of constants that are not the trained weight times one factor for each output channel, as folding makes them.

    Args:
        graph: holds a constant of every name in `trained`.
        trained: parameter name -> weight, output channels first.
    """
    return tuple(name for name, weight in trained.items() if not _is_scaled(graph.constants[name], weight))


def changed_kept_weights(dense: Graph, sparse: Graph, masks: MaskSet) -> tuple[str, ...]:
    """Names of masked constants whose kept values are not those of the dense graph, bit for bit."""
    return tuple(
        name
        for name, mask in masks.layers.items()
        if dense.constants[name][mask.keep].tobytes() != sparse.constants[name][mask.keep].tobytes()
    )


def _is_scaled(stored: npt.NDArray[Any], trained: npt.NDArray[np.float32]) -> bool:
    if stored.shape != trained.shape:
        return False
    found, expected = (array.reshape(len(array), -1).astype(np.float64) for array in (stored, trained))
    energy = (expected**2).sum(1, keepdims=True)
    factor = (found * expected).sum(1, keepdims=True) / np.where(energy > 0, energy, 1)
    limit = _ROUNDING * np.abs(found).max(1, keepdims=True) + np.finfo(np.float32).tiny
    return bool((np.abs(found - factor * expected) <= limit).all())
