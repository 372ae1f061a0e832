"""Writing zeros into the constants of a graph."""

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.bake.fit import fit_masks
from masksparse_deploy.bake.stored import replace_stored, stored_tensor
from masksparse_deploy.core.masks import LayerMask, MaskSet

__all__ = ["ApplyMasks"]


class ApplyMasks(ir.passes.InPlacePass):
    """Set every weight that its mask does not keep to exactly 0.0, and change nothing else.

    Folding batch norm multiplies each output channel of a kernel by one factor, so the mask of the trained weight is the
    mask of the folded one: (keep * W) * s = keep * (W * s).

    Requires that every mask finds the constant of its name, read only by operators whose input channels lie on its group
    axis (see bake.fit); raises GraphMismatchError (an ArtifactError) otherwise. The masked values are computed whenever they
    are asked for, so that a large model is never in memory as a whole.
    """

    def __init__(self, masks: MaskSet) -> None:
        super().__init__()
        self._masks = masks

    def requires(self, model: ir.Model) -> None:
        """Every mask fits the graph."""
        fit_masks(model, self._masks)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the masked constants."""
        modified = False
        for value, mask in fit_masks(model, self._masks).items():
            tensor = stored_tensor(value)
            modified |= bool(_dropped_bytes(tensor, mask).any())
            replace_stored(value, _masked(tensor, mask))
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Nothing that a mask drops is left."""
        for value, mask in fit_masks(model, self._masks).items():
            assert not _dropped_bytes(stored_tensor(value), mask).any()


def _masked(tensor: ir.TensorProtocol, mask: LayerMask) -> ir.LazyTensor:
    def compute() -> ir.TensorProtocol:
        dense = tensor.numpy()
        # A negative weight times False would be -0.0: choose instead of multiplying.
        sparse = np.where(mask.keep, dense, np.zeros((), dtype=dense.dtype))
        del dense
        _release(tensor)
        return ir.Tensor(sparse, dtype=tensor.dtype, shape=ir.Shape(sparse.shape), name=tensor.name)

    return ir.LazyTensor(
        compute,
        dtype=tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
        doc_string=tensor.doc_string,
        metadata_props=dict(tensor.metadata_props),
    )


def _dropped_bytes(tensor: ir.TensorProtocol, mask: LayerMask) -> npt.NDArray[Any]:
    """The weights that the mask drops, as bytes: -0.0 is none of the zeros that are written."""
    dropped = np.ascontiguousarray(tensor.numpy()[~mask.keep]).view(np.uint8)
    _release(tensor)
    return dropped


def _release(tensor: ir.TensorProtocol) -> None:
    """Let go of a mapped file, whose pages would count as memory until the end; no array of it may be alive."""
    if isinstance(tensor, ir.ExternalTensor):
        tensor.release()
