"""Writing into the file what is sparse, which masks it came from, and why the rest is dense."""

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from masksparse_deploy.bake.fit import fit_masks
from masksparse_deploy.bake.stored import stored_tensor
from masksparse_deploy.bake.trace import trace_weights
from masksparse_deploy.core.masks import LayerMask, MaskSet
from masksparse_deploy.graph import annotations as keys

__all__ = ["Annotate", "MarkDense"]


class MarkDense(ir.passes.InPlacePass):
    """Say that a file is the dense twin; nothing else is written into it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the schema version and the role to the model."""
        model.metadata_props.update({keys.SCHEMA_VERSION: keys.SCHEMA, keys.ROLE: keys.ROLE_DENSE})
        return ir.passes.PassResult(model, True)


class Annotate(ir.passes.InPlacePass):
    """Annotate the model, the nodes and the constants of a file that the masks were applied to (docs/annotations.md)."""

    def __init__(self, masks: MaskSet) -> None:
        super().__init__()
        self._masks = masks

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Add the metadata_props."""
        masks = self._masks
        model.metadata_props.update(
            {
                keys.SCHEMA_VERSION: keys.SCHEMA,
                keys.ROLE: keys.ROLE_SPARSE,
                keys.METHOD: masks.method,
                keys.MASK_SET_SHA256: masks.digest,
                keys.SOURCE_SHA256: masks.source_sha256,
            }
        )
        masked = {value: _properties(value, mask) for value, mask in fit_masks(model, masks).items()}
        for weight in trace_weights(model):
            value = weight.initializer
            properties = masked.get(value) or {keys.DENSE_REASON: self._dense_reason(value.name or "")}
            weight.node.metadata_props.update(properties)
            stored_tensor(value).metadata_props.update(properties)
        return ir.passes.PassResult(model, True)

    def _dense_reason(self, weight_name: str) -> str:
        layer = weight_name.removesuffix(".weight")
        reasons = (skipped.reason for skipped in self._masks.skipped if skipped.name == layer)
        unknown = (
            "its positions are masked, its weights are not"
            if layer in self._masks.positions
            else "the mask set has no mask of that name"
        )
        return next(reasons, unknown)


def _properties(value: ir.Value, mask: LayerMask) -> Mapping[str, str]:
    """What is said of a masked constant; `mask` is in the constant's axes."""
    values = stored_tensor(value).numpy()
    return {
        keys.PATTERN: str(mask.pattern),
        keys.GROUP_AXIS: str(mask.group_axis),
        keys.MASK_SHA256: mask.digest,
        keys.DENSITY: repr(float(np.count_nonzero(values) / values.size)),
    }
