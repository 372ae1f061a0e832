"""What each ATen operator does to the channels of its inputs. An operator without a rule here pins all it touches."""

import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch.fx import Node

from masksparse_deploy.learn.permutation.layout import Layout
from masksparse_deploy.learn.permutation.trace import Trace, Value, shape_of

__all__ = ["propagate"]

Results = Value | tuple[Value, ...]
Rule = Callable[[Trace, Node, dict[str, Any]], Results]


class _UnknownError(Exception):
    """A rule meets a case that it does not cover."""


def propagate(trace: Trace, node: Node) -> Results:
    """The layouts of what a node computes; notes in `trace` how it reads parameters, and what has to stay."""
    if node.target is operator.getitem:
        source, index = node.args
        found = trace.values.get(source) if isinstance(source, Node) else None
        return found[index] if isinstance(found, tuple) and isinstance(index, int) else None
    target = node.target
    if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten":
        name = target._schema.name.partition("::")[2]
        rule = _RULES.get(name)
        if rule is None and torch.Tag.pointwise in target.tags and torch.Tag.nondeterministic_seeded not in target.tags:
            rule = _pointwise
        if rule is not None:
            try:
                return rule(trace, node, _arguments(node, target))
            except _UnknownError:
                pass
    for source in node.all_input_nodes:
        trace.pin(source)
    return None


def _arguments(node: Node, target: torch._ops.OpOverload) -> dict[str, Any]:
    """The arguments by name, defaults filled in."""
    schema = target._schema.arguments
    bound = {argument.name: argument.default_value for argument in schema if argument.has_default_value()}
    bound.update({argument.name: value for argument, value in zip(schema, node.args, strict=False)})
    return {**bound, **node.kwargs}


def _dimension(dim: int, rank: int) -> int:
    return dim % rank if rank else 0


def _unary(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Every value on its own, or along axes where a reordering commutes with it."""
    return trace.value(given["self"] if "self" in given else given["input"])


def _dropout(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    if given["train"]:
        raise _UnknownError
    return trace.value(given["input"])


def _without_effect(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Looks at types and shapes only."""
    return None


def _pointwise(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Sums, products, activations: position by position, all inputs hold the same channels."""
    rank = len(shape_of(node))
    several = [source for source in node.all_input_nodes if trace.has_several_axes(source)]
    others = [source for source in node.all_input_nodes if source not in several]
    found = {source: layout.moved(layout.axis + rank - len(shape_of(source))) for source, layout in _layouts(trace, others)}
    axes = {layout.axis for layout in found.values()}
    if len(axes) > 1:
        raise _UnknownError
    if not axes:
        for source in several:
            trace.read(source, {})
        return None
    axis = axes.pop()
    reference = next(iter(found.values()))
    for source in (*others, *several):
        own_axis = axis - (rank - len(shape_of(source)))
        stretched = own_axis < 0 or shape_of(source)[own_axis] == 1
        if source in several:
            trace.read(source, {} if stretched else {own_axis: reference})
        elif source in found:
            trace.channels.unify(reference, found[source])
        elif not stretched:
            trace.channels.pin(reference)
    return reference


def _layouts(trace: Trace, sources: Sequence[Node]) -> list[tuple[Node, Layout]]:
    """The inputs whose channels are followed; a single channel cannot change places with another."""
    values = [(source, trace.value(source)) for source in sources]
    return [(source, layout) for source, layout in values if layout is not None and len(layout) > 1]


def _convolution(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    source, weight, groups = given["input"], given["weight"], given["groups"]
    transposed = "transpose" in str(node.target)
    axis = len(shape_of(source)) - len(shape_of(weight)) + 1
    in_count, out_count = shape_of(source)[axis], shape_of(node)[axis]
    out_axis, in_axis = (1, 0) if transposed else (0, 1)
    layout = trace.value(source)
    if layout is not None and layout.axis != axis:
        raise _UnknownError
    target: Value
    if groups == 1:
        target = trace.channels.fresh(axis, out_count)
        trace.read(weight, {out_axis: target, in_axis: layout})
    elif transposed:
        raise _UnknownError
    elif groups == in_count:
        target = layout and _repeated(trace, layout, out_count // in_count)
        trace.read(weight, {out_axis: target})
    else:
        # Every group has its own kernels over its own inputs; its outputs may change places among themselves.
        if layout is not None:
            trace.channels.pin(layout)
        target = trace.channels.fresh(axis, out_count)
        _keep_apart(trace, target, groups)
        trace.read(weight, {out_axis: target})
    trace.read(given["bias"], {0: target})
    return target


def _repeated(trace: Trace, layout: Layout, count: int) -> Layout:
    """Each position replaced by `count` neighbours of the same channel."""
    if count == 1:
        return layout
    copies = layout.copies[:, None] * count + np.arange(count)
    return trace.channels.place(layout.axis, np.repeat(layout.channels, count), copies.reshape(-1))


def _keep_apart(trace: Trace, layout: Layout, groups: int) -> None:
    """No channel leaves its group of neighbours."""
    size = len(layout) // groups
    for first in range(0, len(layout), size):
        trace.channels.part(layout, slice(first, first + size))


def _linear(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["input"])
    last = len(shape_of(node)) - 1
    if layout is not None and layout.axis != last:
        trace.read(given["weight"], {})
        trace.read(given["bias"], {})
        return layout
    target = trace.channels.fresh(last, shape_of(node)[last])
    trace.read(given["weight"], {0: target, 1: layout})
    trace.read(given["bias"], {0: target})
    return target


def _per_channel(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Batch and instance normalisation, PReLU: parameters along axis 1."""
    layout = trace.value(given["self"] if "self" in given else given["input"])
    along = layout if layout is not None and layout.axis == 1 else None
    for name in ("weight", "bias", "running_mean", "running_var"):
        trace.read(given.get(name), {0: along})
    # The other results are statistics of training.
    return (layout, None, None) if isinstance(node.meta["val"], (tuple, list)) else layout


def _group_norm(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["input"])
    if layout is None or layout.axis != 1:
        raise _UnknownError
    _keep_apart(trace, layout, given["num_groups"])
    return _per_channel(trace, node, given)


def _layer_norm(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["input"])
    first = len(shape_of(node)) - len(given["normalized_shape"])
    inside = layout is not None and layout.axis >= first
    for name in ("weight", "bias"):
        trace.read(given.get(name), {layout.axis - first: layout} if layout is not None and inside else {})
    return layout


def _spatial(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Pooling and resizing: each channel on its own, over the last axes, as many as the operator's name says."""
    layout = trace.value(given["self"] if "self" in given else given["input"])
    spatial = re.search(r"([123])d", str(node.target))
    results = node.meta["val"]
    rank = (results[0] if isinstance(results, (tuple, list)) else results).ndim
    if spatial is None or (layout is not None and layout.axis >= rank - int(spatial[1])):
        raise _UnknownError
    return (layout,) * len(results) if isinstance(results, (tuple, list)) else layout


def _pad(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    if layout is None:
        return None
    index = 2 * (len(shape_of(node)) - 1 - layout.axis)
    before, after = given["pad"][index : index + 2] if index < len(given["pad"]) else (0, 0)
    if before == after == 0:
        return layout
    if min(before, after) < 0 or given.get("mode", "constant") != "constant":
        raise _UnknownError
    # The new channels on both sides hold the same constant, so these may change places too.
    added = trace.channels.fresh(layout.axis, before + after)
    channels, copies = (
        np.concatenate([around[:before], inside, around[before:]])
        for around, inside in ((added.channels, layout.channels), (added.copies, layout.copies))
    )
    return trace.channels.place(layout.axis, channels, copies)


def _cat(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    sources = given["tensors"]
    rank = len(shape_of(node))
    if any(len(shape_of(source)) != rank for source in sources):
        raise _UnknownError
    dim = _dimension(given["dim"], rank)
    layouts = [trace.value(source) for source in sources]
    axes = {layout.axis for layout in layouts if layout is not None}
    if not axes:
        return None
    if len(axes) > 1:
        raise _UnknownError
    axis = axes.pop()
    known = [
        layout or trace.channels.fixed(axis, shape_of(source)[axis]) for source, layout in zip(sources, layouts, strict=True)
    ]
    if axis == dim:
        channels, copies = (
            np.concatenate(parts) for parts in zip(*((layout.channels, layout.copies) for layout in known), strict=True)
        )
        return trace.channels.place(axis, channels, copies)
    for layout in known[1:]:
        trace.channels.unify(known[0], layout)
    return known[0]


def _split(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    parts = node.meta["val"]
    if layout is None or layout.axis != _dimension(given["dim"], len(shape_of(given["self"]))):
        return (layout,) * len(parts)
    ends = np.cumsum([part.shape[layout.axis] for part in parts]).tolist()
    return tuple(trace.channels.part(layout, slice(first, end)) for first, end in zip((0, *ends[:-1]), ends, strict=True))


def _slice(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    if layout is None or layout.axis != _dimension(given["dim"], len(shape_of(node))):
        return layout
    return trace.channels.part(layout, slice(given["start"], given["end"], given["step"]))


def _select(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    dim = _dimension(given["dim"], len(shape_of(given["self"])))
    if layout is None:
        return None
    if layout.axis == dim:
        raise _UnknownError
    return layout.moved(layout.axis - (dim < layout.axis))


def _reduction(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Over the channels, the order does not matter; over other axes, each channel on its own."""
    layout = trace.value(given["self"])
    rank = len(shape_of(given["self"]))
    dims = given.get("dim")
    reduced = {_dimension(dim, rank) for dim in ([dims] if isinstance(dims, int) else dims or range(rank))}
    if layout is None or layout.axis in reduced:
        return None
    return layout if given["keepdim"] else layout.moved(layout.axis - sum(dim < layout.axis for dim in reduced))


def _reshape(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    """Axes may come and go around the channels; the axes behind them may be flattened into theirs, and taken out again."""
    source = given["self"] if "self" in given else given["input"]
    layout = trace.value(source)
    if layout is None or len(layout) == 1:
        return None
    before, after = shape_of(source), shape_of(node)
    outer, inner = math.prod(before[: layout.axis]), math.prod(before[layout.axis + 1 :])
    for axis, length in enumerate(after):
        if math.prod(after[:axis]) != outer or length == 1:
            continue
        if length % len(layout) == 0 and inner % (length // len(layout)) == 0:
            return _repeated(trace, layout, length // len(layout)).moved(axis)
        if len(layout) % length == 0:
            return _unrepeated(trace, layout, len(layout) // length).moved(axis)
    raise _UnknownError


def _unrepeated(trace: Trace, layout: Layout, count: int) -> Layout:
    """The inverse of `_repeated`."""
    channels, copies = layout.channels.reshape(-1, count), layout.copies.reshape(-1, count)
    first = copies[:, :1]
    if (channels != channels[:, :1]).any() or (copies != first + np.arange(count)).any() or (first % count).any():
        raise _UnknownError
    return trace.channels.place(layout.axis, channels[:, 0], first[:, 0] // count)


def _permute(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    rank = len(shape_of(node))
    places = list(range(rank))
    if "dims" in given:
        places = [_dimension(dim, rank) for dim in given["dims"]]
    elif rank > 1:
        one, other = (_dimension(given.get(name, default), rank) for name, default in (("dim0", 0), ("dim1", 1)))
        places[one], places[other] = other, one
    return layout and layout.moved(places.index(layout.axis))


def _expand(trace: Trace, node: Node, given: dict[str, Any]) -> Results:
    layout = trace.value(given["self"])
    if layout is None or len(layout) == 1:
        return None
    return layout.moved(layout.axis + len(shape_of(node)) - len(shape_of(given["self"])))


_RULES: dict[str, Rule] = {
    **dict.fromkeys(("alias", "clone", "contiguous", "detach", "hardswish", "lift_fresh_copy", "to", "_to_copy"), _unary),
    **dict.fromkeys(("softmax", "_softmax", "log_softmax", "_log_softmax"), _unary),
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _dropout),
    **dict.fromkeys(("_assert_tensor_metadata", "sym_size"), _without_effect),
    **dict.fromkeys((f"conv{transpose}{count}d" for transpose in ("", "_transpose") for count in (1, 2, 3)), _convolution),
    **dict.fromkeys(("batch_norm", "_native_batch_norm_legit_no_training", "instance_norm", "prelu"), _per_channel),
    **dict.fromkeys((f"{kind}_pool{count}d" for kind in ("max", "avg") for count in (1, 2, 3)), _spatial),
    **dict.fromkeys((f"adaptive_{kind}_pool{count}d" for kind in ("max", "avg") for count in (1, 2, 3)), _spatial),
    **dict.fromkeys(("max_pool2d_with_indices", "upsample_nearest2d", "upsample_bilinear2d", "upsample_bicubic2d"), _spatial),
    **dict.fromkeys(("pad", "constant_pad_nd"), _pad),
    **dict.fromkeys(("split", "split_with_sizes", "chunk", "unsafe_split", "unsafe_chunk"), _split),
    **dict.fromkeys(("mean", "sum", "amax", "amin", "logsumexp"), _reduction),
    **dict.fromkeys(("view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"), _reshape),
    **dict.fromkeys(("permute", "transpose", "t"), _permute),
    **dict.fromkeys(("layer_norm", "rms_norm"), _layer_norm),
    "cat": _cat,
    "expand": _expand,
    "group_norm": _group_norm,
    "linear": _linear,
    "select": _select,
    "slice": _slice,
}
