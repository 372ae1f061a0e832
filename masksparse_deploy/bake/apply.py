"""Writing zeros into initializers."""

import numpy as np
import onnx_ir as ir

from masksparse_deploy.bake.trace import GraphMismatchError, TracedWeight, trace_weights
from masksparse_deploy.core.masks import LayerMask, MaskSet

__all__ = ["ApplyMasks"]


class ApplyMasks(ir.passes.InPlacePass):
    """Set every weight that its mask does not keep to exactly 0.0, and change nothing else.

    Folding batch norm multiplies each output channel of a kernel by one factor, so the mask of the trained weight is the
    mask of the folded one: (keep * W) * s = keep * (W * s).

    Requires that every mask finds the initializer of its name, in its shape, read only by operators whose input channels lie
    on its group axis; raises GraphMismatchError (an ArtifactError) otherwise.
    """

    def __init__(self, masks: MaskSet) -> None:
        super().__init__()
        self._masks = masks

    def requires(self, model: ir.Model) -> None:
        """Every mask fits the graph."""
        traced = trace_weights(model)
        for mask in self._masks.layers.values():
            _require_fit(mask, traced, model)

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Replace the masked initializers."""
        modified = False
        for name, mask in self._masks.layers.items():
            value = model.graph.initializers[name]
            tensor = value.const_value
            assert tensor is not None
            dense = tensor.numpy()
            # A negative weight times False would be -0.0: choose instead of multiplying.
            sparse = np.where(mask.keep, dense, np.zeros((), dtype=dense.dtype))
            modified |= sparse.tobytes() != dense.tobytes()
            value.const_value = ir.Tensor(
                sparse, name=name, doc_string=tensor.doc_string, metadata_props=dict(tensor.metadata_props)
            )
        return ir.passes.PassResult(model, modified)

    def ensures(self, model: ir.Model) -> None:
        """Nothing that a mask drops is left."""
        for name, mask in self._masks.layers.items():
            value = model.graph.initializers[name].const_value
            assert value is not None and not value.numpy()[~mask.keep].any()


def _require_fit(mask: LayerMask, traced: tuple[TracedWeight, ...], model: ir.Model) -> None:
    name = mask.weight_name
    found = [weight for weight in traced if weight.initializer.name == name]
    if not found:
        layer = name.removesuffix(".weight")
        if name in model.graph.initializers:
            reason = "no convolution or matrix product of the ONNX graph multiplies by it"
        else:
            reason = "the ONNX graph has no initializer of that name"
        raise GraphMismatchError(
            f"mask of {name}: {reason}; the masks were made for another model, or the export rewrites this layer: run "
            f"'masksparse learn' again, with '{layer}' under mask.exclude if it stays so"
        )
    value = found[0].initializer
    shape = tuple(value.const_value.shape.numpy()) if value.const_value is not None else ()
    if shape != mask.keep.shape:
        raise GraphMismatchError(
            f"mask of {name} has shape {mask.keep.shape}, but the weight in the ONNX graph has {shape}; the masks were made "
            "for another model: run 'masksparse learn' again"
        )
    for weight in found:
        if weight.group_axis != mask.group_axis:
            raise GraphMismatchError(
                f"mask of {name}: groups run along axis {mask.group_axis}, but the input channels of node {weight.node.name} "
                f"({weight.node.op_type}) lie on axis {weight.group_axis}; sparse kernels need groups of input channels"
            )
    if len(value.uses()) != len(found):
        readers = sorted({f"{use.node.name} ({use.node.op_type})" for use in value.uses()})
        raise GraphMismatchError(
            f"mask of {name}: the weight is also read by an operator that is no convolution or matrix product "
            f"({', '.join(readers)}), which the zeros would change too; add the layer to mask.exclude"
        )
