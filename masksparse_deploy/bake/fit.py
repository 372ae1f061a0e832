"""Which stored constant a mask is meant for, and the mask in the axes of that constant."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.bake.rearrange import to_stored
from masksparse_deploy.bake.stored import stored_tensor
from masksparse_deploy.bake.trace import GraphMismatchError, Trace, TracedWeight, trace
from masksparse_deploy.core.masks import LayerMask, MaskSet

__all__ = ["fit_masks"]

Keep = npt.NDArray[np.bool_]


def fit_masks(model: ir.Model, masks: MaskSet) -> Mapping[ir.Value, LayerMask]:
    """Find for each mask the constant of its name, and bring the mask into the constant's axes.

    A mask may be given in the axes of the stored constant, in those of the operator that reads it behind a Transpose or a
    Reshape, or, for a matrix, transposed, as PyTorch's (out, in) is to the (in, out) that MatMul reads. What decides is where
    the input channels lie: the groups of the mask must run along them in every operator that multiplies by the constant.

    Returns:
        constant -> mask, in the order of the mask set; the mask itself where it is in the constant's axes already.

    Raises:
        GraphMismatchError: there is no such constant, it has another shape, its groups would run along something else than
            input channels, or zeros in it would change something else than products.
    """
    traced = trace(model)
    fitted: dict[ir.Value, LayerMask] = {}
    for mask in masks.layers.values():
        value, weights = _multiplied(mask, traced, model)
        fitted[value] = _in_stored_axes(mask, value, weights)
        _refuse_other_readers(mask, value, weights, traced)
    return fitted


def _multiplied(mask: LayerMask, traced: Trace, model: ir.Model) -> tuple[ir.Value, list[TracedWeight]]:
    name = mask.weight_name
    found = traced.named(name)
    if not found:
        layer = name.removesuffix(".weight")
        if any(name in graph.initializers for graph in model.graphs()):
            reason = "no convolution or matrix product of the ONNX graph multiplies by it"
        else:
            reason = "the ONNX graph has no initializer of that name"
        raise GraphMismatchError(
            f"mask of {name}: {reason}; the masks were made for another model, or the export rewrites this layer: run "
            f"'masksparse learn' again, with '{layer}' under mask.exclude if it stays so"
        )
    if len(found) > 1:
        raise GraphMismatchError(
            f"mask of {name}: {len(found)} constants in bodies or functions of the ONNX file have that name; give them names "
            "of their own"
        )
    ((value, weights),) = found.items()
    return value, weights


def _in_stored_axes(mask: LayerMask, value: ir.Value, weights: list[TracedWeight]) -> LayerMask:
    name = mask.weight_name
    shape = tuple(stored_tensor(value).shape.numpy())
    for weight in weights:
        if weight.obstacle:
            raise GraphMismatchError(
                f"mask of {name}: a stored zero is no zero of the weight, as {weight.obstacle}; quantize the weights "
                "symmetrically, with zero points 0"
            )
        if weight.group_axis is None:
            raise GraphMismatchError(
                f"mask of {name}: a Reshape before node {weight.node.name} ({weight.node.op_type}) takes the axis of the input "
                "channels apart, so that no annotation could name it; store the weight in the shape that the operator reads"
            )
    axes = {weight.group_axis: weight for weight in weights}
    if len(axes) > 1:
        readers = ", ".join(f"axis {axis} for {weight.node.name} ({weight.node.op_type})" for axis, weight in axes.items())
        raise GraphMismatchError(
            f"mask of {name}: the operators that share the weight have their input channels on different axes of it "
            f"({readers}), and a mask fits one axis only; add the layer to mask.exclude"
        )
    candidates = list(_readings(mask, shape, weights))
    if not candidates:
        raise GraphMismatchError(
            f"mask of {name} has shape {mask.keep.shape}, but the weight in the ONNX graph has {shape}; the masks were made "
            "for another model: run 'masksparse learn' again"
        )
    fitting = [candidate for candidate in candidates if candidate.group_axis in axes]
    if not fitting:
        weight = weights[0]
        raise GraphMismatchError(
            f"mask of {name}: groups run along axis {mask.group_axis}, but the input channels of node {weight.node.name} "
            f"({weight.node.op_type}) lie on axis {weight.group_axis}; sparse kernels need groups of input channels"
        )
    return fitting[0]


def _readings(mask: LayerMask, shape: tuple[int, ...], weights: list[TracedWeight]) -> list[LayerMask]:
    """The mask in the axes of the constant, in each way that its shape allows; the most direct first."""
    readings = [mask] if mask.keep.shape == shape else []
    for weight in weights:
        if weight.route and weight.operand_shape == mask.keep.shape and weight.operand_axis == mask.group_axis:
            assert weight.group_axis is not None
            readings.append(_rewritten(mask, partial(to_stored, route=weight.route), weight.group_axis))
    if mask.keep.ndim == 2 and mask.keep.shape[::-1] == shape:
        readings.append(_rewritten(mask, np.transpose, 1 - mask.group_axis))
    return readings


def _rewritten(mask: LayerMask, rearrange: Callable[[Keep], Keep], group_axis: int) -> LayerMask:
    unpadded_shape = None
    if mask.unpadded_shape is not None:
        own = np.zeros(mask.keep.shape, dtype=np.bool_)
        own[tuple(slice(length) for length in mask.unpadded_shape)] = True
        unpadded_shape = tuple(int(places.max()) + 1 for places in np.nonzero(rearrange(own)))
    return replace(mask, keep=rearrange(mask.keep), group_axis=group_axis, unpadded_shape=unpadded_shape)


def _refuse_other_readers(mask: LayerMask, value: ir.Value, weights: list[TracedWeight], traced: Trace) -> None:
    name = mask.weight_name
    if traced.other_readers[value]:
        raise GraphMismatchError(
            f"mask of {name}: the weight is also read by an operator that is no convolution or matrix product "
            f"({', '.join(traced.other_readers[value])}), which the zeros would change too; add the layer to mask.exclude"
        )
    for weight in weights:
        other = next((one for one in traced.weights if one.node is weight.node and one.initializer is not value), None)
        if other is not None:
            raise GraphMismatchError(
                f"mask of {name}: the function around node {weight.node.name} ({weight.node.op_type}) is also called with "
                f"{other.initializer.name}, so that no annotation of the node could hold for both; inline the functions first"
            )
