"""How much of the sparse engine's deviation from the dense network is mask, new values, quantization and rounding.

Between the two lie networks that differ in one respect each, evaluated in float64 on the same samples. With z_0 the dense
reference, z_1 masked, z_2 with new values, z_3 as the file says and z_4 what the engine gives,

    ||z_4 - z_0|| <= ||z_1 - z_0|| + ||z_2 - z_1|| + ||z_3 - z_2|| + ||z_4 - z_3||,

all norms over all samples together, and relative to ||z_0||.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.attribution import PARTS, Attribution, DeviationParts, LayerAttribution
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.graph.evaluate import evaluate, unsupported_operators
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.positions import is_positions_node
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.validate.layers import LayerPair
from masksparse_deploy.validate.rounding_int8 import exact_output
from masksparse_deploy.validate.units import Unit
from masksparse_deploy.validate.variants import Variants

__all__ = ["attribute"]

# Samples whose activations are held at a time.
_CHUNK = 16

Array = npt.NDArray[Any]
Values = npt.NDArray[np.float64]


class _Sums:
    """Squares of the reference, of the steps, of the first two together and of all, added up over chunks of samples."""

    def __init__(self) -> None:
        self._count = 0
        self._squares = np.zeros(len(PARTS) + 3)

    def add(self, values: Sequence[Values]) -> None:
        """Take the outputs of all networks in order for a few samples, the engine's last."""
        steps = [after - before for before, after in itertools.pairwise(values)]
        together = (steps[0] + steps[1], values[-1] - values[0])
        self._squares += [float((array**2).sum()) for array in (values[0], *steps, *together)]
        self._count += len(values[0])

    @property
    def output_norm(self) -> float:
        """Root mean square over the samples of the reference's norm."""
        return float(np.sqrt(self._squares[0] / self._count))

    @property
    def parts(self) -> DeviationParts:
        """Norms relative to the reference's, or as they are where that is 0."""
        scale = np.sqrt(self._squares[0]) or 1.0
        *steps, sparsity, total = (float(value) for value in np.sqrt(self._squares[1:]) / scale)
        return DeviationParts(total=total, sparsity=sparsity, **dict(zip(PARTS, steps, strict=True)))


def attribute(
    session: Session,
    pairs: tuple[LayerPair, ...],
    variants: Variants,
    images: npt.NDArray[np.float32],
    outputs: Array,
    *,
    input_name: str,
    progress: Progress = silent,
) -> Attribution:
    """Measure the parts of every changed layer on the engine's own input, and of the output on the networks' own values.

    What the masks do to a layer's input is not counted at the layer, but at those before it; the output has it all.

    Args:
        session: an engine that returns `exposed_tensors`.
        pairs: the changed layers.
        variants: the networks in between.
        images: float32 (count, channels, height, width).
        outputs: the deployed engine's first output for them, (count, classes).
        input_name: the model's input.
        progress: told how many images are done.
    """
    sums = {pair.bound.node: _Sums() for pair in pairs}
    layers = [{layer.node.name: layer for layer in weighted_layers(graph)} for graph in variants.steps]
    for start in range(0, len(images), _CHUNK):
        progress("attribute deviations", start, len(images))
        chunk = images[start : start + _CHUNK]
        tensors = {input_name: chunk, **session.run(chunk)}
        for pair in pairs:
            node = pair.bound.node
            sums[node].add(_layer_values(pair.sparse, [found[node] for found in layers], tensors))
    progress("attribute deviations", len(images), len(images))
    missing = sorted({reason for graph in variants.steps for reason in unsupported_operators(graph)})
    whole = None if missing else _output_sums(variants, images, outputs)
    return Attribution(
        sample_count=len(images),
        reference=variants.reference,
        layers=tuple(
            LayerAttribution(
                layer=pair.bound.layer,
                node=pair.bound.node,
                output_norm=sums[pair.bound.node].output_norm,
                parts=sums[pair.bound.node].parts,
            )
            for pair in pairs
        ),
        output_norm=None if whole is None else whole.output_norm,
        output=None if whole is None else whole.parts,
        output_obstacle=f"the float64 reference does not cover {', '.join(missing)}" if missing else "",
    )


def _layer_values(unit: Unit, layers: Sequence[WeightedLayer], tensors: Mapping[str, Array]) -> list[Values]:
    """What the layer gives with each network's numbers, on the file's grid, and what the engine gave."""
    x = tensors[unit.input].astype(np.float64)
    others = {name: tensors[name].astype(np.float64) for name in unit.others}
    dense, *networks = layers
    units = [_with_numbers(unit, dense, computes_all=True)]
    units += [_with_numbers(unit, layer, computes_all=False) for layer in networks]
    exact = [exact_output(own, x, others) for own in units]
    return [*(output.exact for output in exact[:-1]), exact[-1].nearest, tensors[unit.output].astype(np.float64)]


def _with_numbers(unit: Unit, layer: WeightedLayer, *, computes_all: bool) -> Unit:
    """The unit with another network's weight and bias, which masked positions hold too, and without masks if it has none."""
    constants = dict(unit.constants)
    for node in unit.tail:
        if is_positions_node(node):
            keep, _, held = node.inputs
            constants[keep] = np.ones_like(constants[keep]) if computes_all else constants[keep]
            constants[held] = _bias_of(layer, constants[held])
    return replace(unit, layer=replace(unit.layer, weight=layer.weight, bias=layer.bias), constants=constants)


def _bias_of(layer: WeightedLayer, like: Array) -> Array:
    return np.zeros_like(like) if layer.bias is None else layer.bias.reshape(like.shape)


def _output_sums(variants: Variants, images: Array, outputs: Array) -> _Sums:
    sums = _Sums()
    # networks that are the same, as the sparse one and its file in FP32, are evaluated once
    found: dict[int, Values] = {}
    for graph in variants.steps:
        if id(graph) not in found:
            found[id(graph)] = evaluate(graph, images, graph.outputs[:1])[graph.outputs[0]]
    sums.add([*(found[id(graph)] for graph in variants.steps), outputs.astype(np.float64)])
    return sums
