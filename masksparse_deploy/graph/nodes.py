"""One ONNX node applied to arrays: attributes and parameter inputs become arguments of graph.operators."""

import functools
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph import operators
from masksparse_deploy.graph.activations import ACTIVATIONS
from masksparse_deploy.graph.conversions import CONVERSIONS, conversion_obstacle
from masksparse_deploy.graph.geometry import conv_geometry, pool_geometry
from masksparse_deploy.graph.model import Graph, Node
from masksparse_deploy.graph.normalization import NORMALIZATIONS
from masksparse_deploy.graph.resize import apply_resize, resize_obstacle

__all__ = ["apply_node", "axes_of", "obstacle", "pad_widths", "slice_axes"]

Array = npt.NDArray[Any]
# Operators that meant something else before this version of the operator set: broadcasting by attributes, other inputs.
_SINCE = {
    **dict.fromkeys(("Add", "BatchNormalization", "Div", "Dropout", "Gemm", "Greater", "Mul", "Pow", "PRelu", "Sub"), 7),
    **{"Pad": 2, "Reshape": 5, "Resize": 11, "Slice": 10},
}
_NEWEST = 1 << 16
# Before this one, softmax took all axes from the given one on together.
_SOFTMAX_SINCE = 13

# The arrays of a node's inputs; None for an optional input that is left out.
Inputs = Sequence[Array | None]

# Positions of inputs that must be constants, because they decide shapes.
_PARAMETER_INPUTS = {
    "Reshape": (1,),
    "ReduceMax": (1,),
    "ReduceMean": (1,),
    "ReduceSum": (1,),
    "Resize": (1, 2, 3),
    "Squeeze": (1,),
    "Unsqueeze": (1,),
    "Pad": (1, 2, 3),
    "Slice": (1, 2, 3, 4),
    "Clip": (1, 2),
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
}


def apply_node(node: Node, inputs: Inputs, *, batch: int | None, absolute: bool = False) -> Array:
    """The first output of a supported operator.

    Args:
        node: the operator.
        inputs: its inputs in order; None where an optional one is left out.
        batch: the batch size fixed in the file, which a Reshape may repeat; None if it is dynamic.
        absolute: take the absolute values of scalar factors (Gemm's alpha and beta) too.

    Raises:
        UsageError: the shapes do not fit together, as where a file is made for one batch size.
    """
    try:
        if node.op == "Reshape":
            return _reshape(_first(inputs), inputs[1], batch)
        if node.op == "Gemm":
            return _gemm(node, inputs, absolute)
        return _OPERATORS[node.op](node, inputs)
    except (ArithmeticError, IndexError, ValueError) as error:  # what NumPy and Python say of shapes that do not fit
        shapes = ", ".join(str(array.shape) for array in inputs if array is not None)
        raise UsageError(
            f"{node.op} {node.name!r} cannot be computed for inputs of the shapes {shapes} ({error}); "
            "export the model with a dynamic batch"
        ) from error


def obstacle(node: Node, graph: Graph, computed: Container[str] = ()) -> str | None:
    """Why `node` cannot be evaluated, or None; `computed` are tensors that are known once the shape of the input is."""
    if node.domain not in ("", "ai.onnx"):
        return f"{node.domain}.{node.op}"
    if node.op not in _OPERATORS and node.op not in ("Reshape", "Gemm"):
        return node.op
    opset = graph.opsets.get("", _NEWEST)
    if opset < _SINCE.get(node.op, 0):
        return f"{node.op} of an operator set before {_SINCE[node.op]}"
    get = node.attributes.get
    if node.op in ("LogSoftmax", "Softmax") and opset < _SOFTMAX_SINCE and not _is_last(get("axis", 1), graph, node.inputs[0]):
        return f"{node.op} of an operator set before {_SOFTMAX_SINCE} over several axes"
    if node.op in ("Conv", "ConvTranspose") and len(graph.shapes.get(node.inputs[1], ())) != 4:
        return f"{node.op} that is not two-dimensional"
    if node.op in CONVERSIONS and (reason := conversion_obstacle(node, graph)) is not None:
        return reason
    if node.op in ("MaxPool", "AveragePool"):
        if len(get("kernel_shape", ())) != 2:
            return f"{node.op} that is not two-dimensional"
        if get("storage_order", 0) or set(get("dilations", (1,))) != {1}:
            return f"{node.op} with storage_order or dilations"
    if node.op == "Resize" and (reason := resize_obstacle(node)) is not None:
        return reason
    if node.op == "Pad" and get("mode", "constant") != "constant":
        return f"Pad with mode {get('mode')}"
    if node.op == "BatchNormalization" and get("training_mode", 0):
        return "BatchNormalization in training mode"
    if node.op == "Dropout" and len(node.inputs) == 3 and np.any(graph.constants.get(node.inputs[2], True)):
        return "Dropout in training mode"
    if node.op == "Reshape" and get("allowzero", 0) and 0 in graph.constants.get(node.inputs[1], ()):
        return "Reshape to an empty tensor"
    if sum(bool(name) for name in node.outputs) > 1:
        return f"{node.op} with {len(node.outputs)} outputs"
    for position in _PARAMETER_INPUTS.get(node.op, ()):
        name = node.inputs[position] if len(node.inputs) > position else ""
        if name and name not in graph.constants and name not in computed:
            return f"{node.op} with a computed parameter"
    return None


def _is_last(axis: int, graph: Graph, name: str) -> bool:
    """Whether `axis` is known to be the last one of a tensor."""
    return axis == -1 or (name in graph.shapes and axis == len(graph.shapes[name]) - 1)


def axes_of(node: Node, inputs: Inputs, rank: int) -> tuple[int, ...] | None:
    """The axes of a ReduceMean or Squeeze, not negative, from its attribute (old opsets) or second input; None if not given."""
    given = node.attributes.get("axes")
    if given is None:
        constant = _optional(inputs, 1)
        given = None if constant is None or constant.size == 0 else constant.tolist()
    return None if given is None else tuple(sorted(int(axis) % rank for axis in given))


def pad_widths(node: Node, inputs: Inputs, rank: int) -> list[tuple[int, int]]:
    """What a Pad node adds before and after on each axis; negative where it crops."""
    amounts = node.attributes["pads"] if len(inputs) < 2 else _present(inputs, 1).tolist()
    given = _optional(inputs, 3)
    axes = range(rank) if given is None else [int(axis) % rank for axis in given.tolist()]
    widths = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        widths[axis] = (int(amounts[position]), int(amounts[position + len(axes)]))
    return widths


def slice_axes(inputs: Inputs, rank: int) -> tuple[int, ...]:
    """The axes that a Slice node cuts, not negative, in the order of its starts."""
    given = _optional(inputs, 3)
    return tuple(range(len(_present(inputs, 1)))) if given is None else tuple(int(axis) % rank for axis in given.tolist())


def _first(inputs: Inputs) -> Array:
    return _present(inputs, 0)


def _present(inputs: Inputs, position: int) -> Array:
    array = inputs[position]
    assert array is not None, "ONNX requires this input, the checker has verified it"
    return array


def _optional(inputs: Inputs, position: int) -> Array | None:
    return inputs[position] if len(inputs) > position else None


def _conv(node: Node, inputs: Inputs) -> Array:
    x, weight = _first(inputs), _present(inputs, 1)
    strides, pads, dilations = conv_geometry(node, x.shape[2:], weight.shape[2:])
    groups = int(node.attributes.get("group", 1))
    return operators.convolution(
        x, weight, _optional(inputs, 2), strides=strides, pads=pads, dilations=dilations, groups=groups
    )


def _conv_transpose(node: Node, inputs: Inputs) -> Array:
    x, weight = _first(inputs), _present(inputs, 1)
    get = node.attributes.get
    strides, dilations = tuple(get("strides", (1, 1))), tuple(get("dilations", (1, 1)))
    output_padding = tuple(get("output_padding", (0, 0)))
    sizes, kernel, asked = x.shape[2:], weight.shape[2:], get("output_shape")
    pads = tuple(get("pads", (0, 0, 0, 0)))
    if asked is not None or get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        # the padding follows from the output's shape, here that of the last two axes
        wanted = asked[-2:] if asked is not None else [n * s for n, s in zip(sizes, strides, strict=True)]
        totals = [
            s * (n - 1) + extra + (k - 1) * d + 1 - length
            for n, s, k, d, extra, length in zip(sizes, strides, kernel, dilations, output_padding, wanted, strict=True)
        ]
        halves = [total // 2 for total in totals]
        rest = [total - half for total, half in zip(totals, halves, strict=True)]
        pads = (*halves, *rest) if get("auto_pad", "NOTSET") == "SAME_UPPER" else (*rest, *halves)
    elif get("auto_pad", "NOTSET") == "VALID":
        pads = (0, 0, 0, 0)
    return operators.transposed_convolution(
        x,
        weight,
        _optional(inputs, 2),
        strides=strides,
        pads=pads,
        dilations=dilations,
        output_padding=output_padding,
        groups=int(get("group", 1)),
    )


def _gemm(node: Node, inputs: Inputs, absolute: bool) -> Array:
    a, b, c = _first(inputs), _present(inputs, 1), _optional(inputs, 2)
    alpha, beta = node.attributes.get("alpha", 1.0), node.attributes.get("beta", 1.0)
    if absolute:
        alpha, beta = abs(alpha), abs(beta)
    a = a.T if node.attributes.get("transA", 0) else a
    b = b.T if node.attributes.get("transB", 0) else b
    product: Array = alpha * (a @ b)
    return product if c is None else product + beta * c


def _max_pool(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    geometry = pool_geometry(node, x.shape[2:])
    top, left, bottom, right = geometry.pads
    pads = (top, left, bottom + geometry.extension[0], right + geometry.extension[1])
    return operators.max_pool(x, kernel=geometry.kernel, strides=geometry.strides, pads=pads)


def _average_pool(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    geometry = pool_geometry(node, x.shape[2:])
    return operators.average_pool(
        x,
        kernel=geometry.kernel,
        strides=geometry.strides,
        pads=geometry.pads,
        count_include_pad=bool(node.attributes.get("count_include_pad", 0)),
        extension=geometry.extension,
    )


def _global_max_pool(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    highest: Array = x.max(axis=tuple(range(2, x.ndim)), keepdims=True)
    return highest


def _global_average_pool(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    mean: Array = x.mean(axis=tuple(range(2, x.ndim)), keepdims=True)
    return mean


def _reduced(function: Callable[..., Array]) -> Callable[[Node, Inputs], Array]:
    """A Reduce operator that applies a NumPy function along the axes given."""

    def apply(node: Node, inputs: Inputs) -> Array:
        x = _first(inputs)
        axes = axes_of(node, inputs, x.ndim)
        if axes is None and node.attributes.get("noop_with_empty_axes", 0):
            return x
        return function(x, axis=axes, keepdims=bool(node.attributes.get("keepdims", 1)))

    return apply


def _flatten(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    axis = node.attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(int(np.prod(x.shape[:axis])), -1)


def _reshape(x: Array, shape: Array | None, batch: int | None) -> Array:
    assert shape is not None, "ONNX requires this input, the checker has verified it"
    target = [int(length) if length else x.shape[axis] for axis, length in enumerate(shape.tolist())]
    if batch is not None and target[0] == batch:  # the file repeats its fixed batch size; here any count is computed
        target[0] = len(x)
    return x.reshape(target)


def _squeeze(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    axes = axes_of(node, inputs, x.ndim)
    # without axes all of length 1 go, but a batch of one sample is still a batch
    return x.squeeze(axis=axes if axes is not None else tuple(a for a in range(1, x.ndim) if x.shape[a] == 1))


def _pad(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    widths = pad_widths(node, inputs, x.ndim)
    constant = _optional(inputs, 2)
    value = float(constant.reshape(-1)[0]) if constant is not None else float(node.attributes.get("value", 0.0))
    crops = tuple(slice(-min(low, 0), length + min(high, 0)) for (low, high), length in zip(widths, x.shape, strict=True))
    return np.pad(x[crops], [(max(low, 0), max(high, 0)) for low, high in widths], constant_values=value)


def _slice(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    starts, ends = (_present(inputs, position).tolist() for position in (1, 2))
    axes, given_steps = slice_axes(inputs, x.ndim), _optional(inputs, 4)
    steps = [1] * len(starts) if given_steps is None else given_steps.tolist()
    selection = [slice(None)] * x.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        length = x.shape[axis]
        # ONNX counts a negative end from the back once; an end before the first element means "to the front" for steps < 0
        stop = None if step < 0 and end < -length else end
        # and a start before the first element means the first one, where Python takes none
        start = max(start, -length) if step < 0 else start
        selection[axis] = slice(start, stop, step)
    return x[tuple(selection)]


def _batch_normalization(node: Node, inputs: Inputs) -> Array:
    x, scale, shift, mean, variance = (_present(inputs, position) for position in range(5))
    epsilon = node.attributes.get("epsilon", 1e-5)
    return operators.batch_normalization(x, scale, shift, mean, variance, epsilon=epsilon)


def _unsqueeze(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    given = node.attributes.get("axes")
    axes = _present(inputs, 1).reshape(-1).tolist() if given is None else given
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


def _resize(node: Node, inputs: Inputs) -> Array:
    return apply_resize(node, _first(inputs), _optional(inputs, 2), _optional(inputs, 3))


def _shape(node: Node, inputs: Inputs) -> Array:
    x = _first(inputs)
    start, end = node.attributes.get("start", 0), node.attributes.get("end")
    return np.array(x.shape[start:end], dtype=np.int64)


_OPERATORS: Mapping[str, Callable[[Node, Inputs], Array]] = {
    **ACTIVATIONS,
    **CONVERSIONS,
    **NORMALIZATIONS,
    "Add": lambda node, inputs: _first(inputs) + _present(inputs, 1),
    "Div": lambda node, inputs: _first(inputs) / _present(inputs, 1),
    "Mul": lambda node, inputs: _first(inputs) * _present(inputs, 1),
    "Sub": lambda node, inputs: _first(inputs) - _present(inputs, 1),
    "Sum": lambda node, inputs: functools.reduce(np.add, [_present(inputs, position) for position in range(len(inputs))]),
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_normalization,
    "Concat": lambda node, inputs: np.concatenate(
        [_present(inputs, position) for position in range(len(inputs))], axis=node.attributes["axis"]
    ),
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Dropout": lambda node, inputs: _first(inputs),
    "Flatten": _flatten,
    "Gather": lambda node, inputs: np.take(_first(inputs), _present(inputs, 1), axis=node.attributes.get("axis", 0)),
    "GlobalAveragePool": _global_average_pool,
    "GlobalMaxPool": _global_max_pool,
    "Identity": lambda node, inputs: _first(inputs),
    "MatMul": lambda node, inputs: _first(inputs) @ _present(inputs, 1),
    "MaxPool": _max_pool,
    "Pad": _pad,
    "ReduceMax": _reduced(np.max),
    "ReduceMean": _reduced(np.mean),
    "ReduceSum": _reduced(np.sum),
    "Resize": _resize,
    "Shape": _shape,
    "Slice": _slice,
    "Squeeze": _squeeze,
    "Transpose": lambda node, inputs: _first(inputs).transpose(node.attributes.get("perm")),
    "Unsqueeze": _unsqueeze,
}
