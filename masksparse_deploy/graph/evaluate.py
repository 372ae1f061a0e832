"""A float64 reference evaluation of ONNX graphs of CNN classifiers, written with NumPy alone.

It shares no code with any runtime, so that an engine's outputs can be held against it. Nothing is rounded to the precision of
the file: FP16 and BF16 weights are taken as they are stored and computed with exactly, a Cast between float formats changes
nothing, and DequantizeLinear gives the product of integer and scale. What is rounded is what the file defines as integers: a
Cast to them, and QuantizeLinear.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.graph.model import Graph, Node, WeightedLayer
from masksparse_deploy.graph.nodes import apply_node, obstacle
from masksparse_deploy.graph.positions import MaskedPositions
from masksparse_deploy.graph.simplify import simplified

__all__ = [
    "Evaluation",
    "absolute_layer",
    "apply_layer",
    "evaluate",
    "require_images",
    "shape_tensors",
    "unsupported_operators",
]

Array = npt.NDArray[Any]

# Samples evaluated at a time: bounds the memory for the activations of all layers that are still needed.
_CHUNK = 100


class Evaluation:
    """One pass through a graph that keeps a tensor only as long as a later node reads it.

    Args:
        graph: the model.
        images: (count, ...) as the model takes them.
        dtype: of the arithmetic.
        keep: names of tensors to keep to the end.
        masks: positions that are masked in `graph` although it has no Where for them, as `without_positions` left it; by the
            name of the convolution's output.

    Attributes:
        values: tensors known so far, by name; constants with floating-point values converted to `dtype`.
    """

    def __init__(
        self,
        graph: Graph,
        images: Array,
        *,
        dtype: npt.DTypeLike = np.float64,
        keep: Sequence[str] = (),
        masks: Mapping[str, MaskedPositions] | None = None,
    ) -> None:
        self._graph = graph
        self._masks = masks or {}
        self._dtype = dtype
        self._readers = Counter(name for node in graph.nodes for name in node.inputs)
        self._keep = {*keep, *graph.constants}
        self.values: dict[str, Array] = {
            name: array.astype(dtype) if _is_floating(array) else array for name, array in graph.constants.items()
        }
        (name,) = graph.inputs
        self.values[name] = images.astype(dtype)

    def step(self, node: Node) -> Array:
        """Compute `node`, the next one in graph order, and drop what no later node needs; returns its first output."""
        result = apply_node(node, [self.values[name] if name else None for name in node.inputs], batch=self._batch)
        if _is_floating(result):  # what a Cast or a DequantizeLinear makes of integers is float64
            result = result.astype(self._dtype, copy=False)
        if node.outputs[0] in self._masks:
            result = self._masks[node.outputs[0]].apply(result)
        self.values[node.outputs[0]] = result
        for name in node.inputs:
            self._readers[name] -= 1
            if self._readers[name] == 0 and name not in self._keep:
                self.values.pop(name, None)
        return result

    @property
    def _batch(self) -> int | None:
        (shape,) = self._graph.inputs.values()
        return shape[0]


def evaluate(
    graph: Graph,
    images: Array,
    outputs: Sequence[str] | None = None,
    dtype: npt.DTypeLike = np.float64,
) -> dict[str, Array]:
    """Compute tensors of a graph with one input.

    Args:
        graph: the model.
        images: (count, ...) as the model takes them; converted to `dtype`. A batch size fixed in the file is ignored.
        outputs: names of the tensors to return; the model's outputs if None.
        dtype: of the arithmetic.

    Returns:
        name -> array of `dtype`, (count, ...).

    Raises:
        UsageError: operators that this evaluation does not cover (all are named), more than one input, images or names that
            don't fit the graph.
    """
    graph = simplified(graph)
    wanted = list(graph.outputs if outputs is None else outputs)
    _require_evaluable(graph)
    require_images(graph, images)
    known = {output for node in graph.nodes for output in node.outputs[:1]} | set(graph.inputs)
    for output in wanted:
        if output not in known:
            raise UsageError(f"the graph has no tensor {output!r}; its outputs are {', '.join(graph.outputs)}")
    chunks = []
    for start in range(0, len(images), _CHUNK):
        run = Evaluation(graph, images[start : start + _CHUNK], dtype=dtype, keep=wanted)
        for node in graph.nodes:
            run.step(node)
        chunks.append({name: run.values[name] for name in wanted})
    return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in wanted}


def unsupported_operators(graph: Graph) -> tuple[str, ...]:
    """What `evaluate` cannot compute in this graph, sorted, each once; empty if it can compute everything."""
    graph = simplified(graph)
    computed = shape_tensors(graph)
    found = {reason for node in graph.nodes if (reason := obstacle(node, graph, computed)) is not None}
    return tuple(sorted(found))


def shape_tensors(graph: Graph) -> frozenset[str]:
    """Names of the tensors that depend on the shape of the model's input, but not on its values."""
    fixed, depends = set(graph.constants), set()
    for node in graph.nodes:
        if node.op == "Shape" and not node.domain:
            depends.add(node.outputs[0])
        elif any(name in depends for name in node.inputs) and all(
            not name or name in fixed or name in depends for name in node.inputs
        ):
            depends |= set(node.outputs)
    return frozenset(depends)


def require_images(graph: Graph, images: Array) -> None:
    """Check that `graph` has one input and that `images` (count, ...) fit it; raises UsageError with both shapes."""
    if len(graph.inputs) != 1:
        raise UsageError(f"the model has {len(graph.inputs)} inputs ({', '.join(graph.inputs)}); exactly one is supported")
    ((name, shape),) = graph.inputs.items()
    fits = len(shape) == images.ndim and all(a in (None, b) for a, b in zip(shape[1:], images.shape[1:], strict=True))
    if not fits:
        taken = ", ".join("any" if length is None else str(length) for length in ("count", *shape[1:]))
        raise UsageError(f"images have the shape {images.shape}, the model's input {name!r} takes ({taken})")


def apply_layer(layer: WeightedLayer, x: Array) -> Array:
    """The layer's output, float64, for its input `x` (count, ...), bias included, weights read as float64."""
    bias = None if layer.bias is None else layer.bias.astype(np.float64)
    return apply_node(layer.node, [x.astype(np.float64), layer.weight.astype(np.float64), bias], batch=None)


def absolute_layer(layer: WeightedLayer, x: Array) -> Array:
    """|W| applied to |x|, plus |b|, in float64: what rounding bounds of the layer are proportional to."""
    bias = None if layer.bias is None else np.abs(layer.bias.astype(np.float64))
    inputs = [np.abs(x.astype(np.float64)), np.abs(layer.weight.astype(np.float64)), bias]
    return apply_node(layer.node, inputs, batch=None, absolute=True)


def _is_floating(array: Array) -> bool:
    """Also for the formats that NumPy does not know itself: bfloat16 and the 8-bit ones."""
    return array.dtype.name.startswith(("float", "bfloat"))


def _require_evaluable(graph: Graph) -> None:
    missing = unsupported_operators(graph)
    if missing:
        raise UsageError(
            f"the float64 reference does not cover {', '.join(missing)}; replace these operators before exporting the model"
        )
