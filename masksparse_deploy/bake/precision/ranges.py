"""What FP16 and BF16 lose of a network: values that become infinite, and values that become zero."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.precision.assignment import Assignment, assign_types, graphs_of
from masksparse_deploy.bake.precision.floats import with_known_types
from masksparse_deploy.bake.precision.formats import FloatFormat, FloatPrecision, float_format
from masksparse_deploy.bake.precision.observe import Observed, observe
from masksparse_deploy.core.artifacts.baking import LayerRange
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.graph.layers import weighted_layers
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.reader import parse_graph

__all__ = ["check_ranges", "measure_ranges"]

# A smaller share of values that become zero is not worth a remark: the format's step near them is as large as they are.
_REMARKABLE_SHARE = 0.01
# What protocol buffers, and with them shape inference and the runtime, take in one piece.
_LARGEST_MODEL_BYTES = 2**31 - 1

Array = npt.NDArray[Any]


def measure_ranges(
    model: onnx.ModelProto, precision: FloatPrecision, images: Array | None = None, progress: Progress = silent
) -> tuple[LayerRange, ...]:
    """Count what casting an FP32 model loses, by layer.

    Every Conv, ConvTranspose, Gemm and MatMul with a stored weight has a row. Other operators, other constants (biases among
    them) and the model's inputs have one only where they lose something: a constant, where any of its values becomes infinite
    or zero; an operator, where more of its outputs do than of its inputs together, so that a row names the place where the
    loss begins. `weight` is "" in the row of an operator without a stored weight; the row of a further constant has no
    outputs. Values that stay FP32 in the converted file are not counted, and neither are those inside the bodies of control
    flow, whose constants are.

    Args:
        model: in FP32; not changed.
        precision: that the model is to be converted to.
        images: float32 (count, ...) as the model takes them, to measure outputs on; None to count constants only.
        progress: told of every batch.

    Returns:
        The rows in the order of the graph.

    Raises:
        UsageError: the model cannot be converted (see ConvertFloats) or is larger than 2 GiB, the images don't fit it, it
            cannot be run, or its FP32 outputs are not finite.
    """
    target = float_format(precision)
    if model.ByteSize() > _LARGEST_MODEL_BYTES:
        raise UsageError(
            f"bake.precision: the model has {model.ByteSize():,} bytes in FP32; what {target.title} loses can be measured up "
            "to 2 GiB only: bake it in fp32"
        )
    ours = ir.from_proto(model)
    with_known_types(ours)
    assignment = assign_types(ours, target)
    proto = ir.to_proto(ours)
    graph = parse_graph(proto.SerializeToString(), name="the model")
    layers = {layer.node.outputs[0]: layer for layer in weighted_layers(graph)}
    observed: Mapping[str, Observed] = {}
    if images is not None:
        observed = observe(proto, graph, _observable(ours, assignment), target, images, progress)
    return tuple(_rows(ours, assignment, layers, observed, target))


def check_ranges(ranges: Sequence[LayerRange], precision: FloatPrecision) -> tuple[str, ...]:
    """Refuse constants that would become infinite; say what else is lost.

    Returns:
        One sentence for each layer whose outputs overflow on the measured images, or of whose weights or outputs more than 1 %
        become zero.

    Raises:
        UsageError: weights or other constants overflow.
    """
    target = float_format(precision)
    overflowing = [row for row in ranges if row.weight_overflow_count]
    if overflowing:
        some = "; ".join(
            f"{row.weight} of {row.node}: {row.weight_overflow_count} values, the largest {row.weight_largest:g}"
            for row in overflowing[:3]
        )
        more = f"; and {len(overflowing) - 3} more" if len(overflowing) > 3 else ""
        other = "bf16, which has the range of FP32, or " if precision == "fp16" else ""
        raise UsageError(
            f"bake.precision: constants are beyond {target.largest:g}, the largest number of {target.title} ({some}{more}); "
            f"use {other}fp32, or scale these weights down and the layer's input up"
        )
    return tuple(remark for row in ranges for remark in _remarks(row, target))


@dataclass(frozen=True)
class _Loss:
    """What the cast does to a constant."""

    largest: float = 0.0
    nonzero_count: int = 0
    overflow_count: int = 0
    flushed_count: int = 0


_NOTHING = Observed()


def _loss(values: Array, target: FloatFormat) -> _Loss:
    # FP32's largest number stands for "no limit" (see FloatFormat.overflows)
    largest = np.abs(values[np.abs(values) < np.finfo(np.float32).max]).max(initial=0)
    return _Loss(
        largest=float(largest),
        nonzero_count=int(np.count_nonzero(values)),
        overflow_count=int(target.overflows(values).sum()),
        flushed_count=int(target.flushes(values).sum()),
    )


def _rows(
    model: ir.Model,
    assignment: Assignment,
    layers: Mapping[str, WeightedLayer],
    observed: Mapping[str, Observed],
    target: FloatFormat,
) -> Iterator[LayerRange]:
    weights = {layer.stored_name for layer in layers.values()}
    seen: set[ir.Value] = set()
    for given in model.graph.inputs:
        if (found := observed.get(given.name or "")) is not None and _loses(found):
            yield _row(given.name, outputs=found)
    for graph, _ in graphs_of(model.graph):
        for node in graph:
            for value in node.inputs:
                if value is None or value in seen or value not in assignment.lowered or value.name in weights:
                    continue
                seen.add(value)
                array = _constant(value)
                if array is not None and (loss := _loss(array, target)) and (loss.overflow_count or loss.flushed_count):
                    yield _row(node.name, value.name, loss)
            if graph is not model.graph:
                continue
            outputs = [observed[value.name] for value in node.outputs if value.name and value.name in observed]
            layer = layers.get(node.outputs[0].name or "") if node.outputs else None
            if layer is not None:
                yield _row(node.name, layer.stored_name, _weight_loss(layer, target), outputs[0] if outputs else None)
                continue
            before = [observed.get(value.name or "", _NOTHING) for value in node.inputs if value is not None]
            for found in outputs:
                if _loses(found, before):
                    yield _row(node.name, outputs=found)


def _row(node: str | None, weight: str | None = None, loss: _Loss | None = None, outputs: Observed | None = None) -> LayerRange:
    loss = loss or _Loss()
    return LayerRange(
        node=node or "",
        weight=weight or "",
        weight_largest=loss.largest,
        weight_nonzero_count=loss.nonzero_count,
        weight_overflow_count=loss.overflow_count,
        weight_flushed_count=loss.flushed_count,
        output_largest=outputs.largest if outputs else None,
        output_overflow_count=outputs.overflow_count if outputs else None,
        output_flushed_share=outputs.flushed_share if outputs else None,
    )


def _weight_loss(layer: WeightedLayer, target: FloatFormat) -> _Loss:
    """A weight stored in another type than FP32, as an INT8 one, is not cast."""
    loss = _loss(layer.weight.astype(np.float32), target)
    return loss if layer.stored.dtype == np.float32 else dataclasses.replace(loss, overflow_count=0, flushed_count=0)


def _loses(found: Observed, before: Sequence[Observed] = ()) -> bool:
    """Whether more values are lost than were before the operator."""
    overflows = found.overflow_count > sum(one.overflow_count for one in before)
    return overflows or found.flushed_count > sum(one.flushed_count for one in before)


def _observable(model: ir.Model, assignment: Assignment) -> tuple[str, ...]:
    """The tensors of the main graph that will be computed in 16 bits, or cast to them at the entrance."""
    read_low = [
        value
        for value in model.graph.inputs
        if any(assignment.needs_cast(use.node, use.idx, is_low=False) for use in value.uses()) and not value.is_initializer()
    ]
    computed = [value for node in model.graph for value in node.outputs if node.op_type != "Constant"]
    names = [value.name for value in (*read_low, *(value for value in computed if value in assignment.lowered))]
    return tuple(name for name in names if name)


def _constant(value: ir.Value) -> Array | None:
    """The FP32 array of an initializer or of a Constant operator."""
    if value.is_initializer() and value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.op_type != "Constant" or node.domain not in ("", "ai.onnx"):
        return None
    (attribute,) = node.attributes.values()
    given = attribute.as_tensor().numpy() if attribute.type == ir.AttributeType.TENSOR else attribute.value
    return np.asarray(given, dtype=np.float32)


def _remarks(row: LayerRange, target: FloatFormat) -> Iterator[str]:
    if row.output_overflow_count:
        yield (
            f"{row.node}: {row.output_overflow_count} outputs on the measured images are beyond {target.largest:g}, the "
            f"largest number of {target.title} (the largest is {row.output_largest:g}) and become infinite"
        )
    if row.output_flushed_share is not None and row.output_flushed_share > _REMARKABLE_SHARE:
        yield f"{row.node}: {row.output_flushed_share:.1%} of the outputs that are not zero become zero in {target.title}"
    if row.weight_flushed_count > _REMARKABLE_SHARE * row.weight_nonzero_count:
        yield (
            f"{row.node}: {row.weight_flushed_count} of the {row.weight_nonzero_count} values of {row.weight} that are not "
            f"zero become zero in {target.title}"
        )
