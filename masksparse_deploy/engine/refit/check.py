"""Whether an engine computes what its ONNX file says: a tolerance for rounding, and the measure it is compared with."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.built_precision import expected_precisions
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["relative_difference", "rounding_tolerance"]

# Unit roundoffs. An INT8 tensor is rounded to steps of 1/127 of its largest value: half a step of a value a quarter as large.
_ROUNDOFF = {"fp32": 2.0**-24, "tf32": 2.0**-11, "fp16": 2.0**-11, "bf16": 2.0**-8, "int8": 2.0 / 127}
_SAFETY = 4.0


def relative_difference(outputs: Mapping[str, npt.NDArray[Any]], reference: Mapping[str, npt.NDArray[Any]]) -> float:
    """The root mean square of the differences over that of the reference, of all values of the reference's outputs together.

    Raises:
        ArtifactError: an output is missing or of another shape, or a value is not finite.
    """
    for name, array in reference.items():
        if name not in outputs or outputs[name].shape != array.shape:
            found = outputs[name].shape if name in outputs else "missing"
            raise ArtifactError(f"the engine's output {name} is {found}, that of its file {array.shape}; build a new engine")
    ours, theirs = (_joined(values, reference) for values in (outputs, reference))
    if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
        raise ArtifactError("outputs are not finite numbers: the weights overflow in this precision; bake another one")
    scale = math.sqrt(float(np.mean(theirs**2)))
    difference = math.sqrt(float(np.mean((ours - theirs) ** 2)))
    return difference / scale if scale > 0 else (0.0 if difference == 0 else math.inf)


def _joined(values: Mapping[str, npt.NDArray[Any]], names: Iterable[str]) -> npt.NDArray[np.float64]:
    return np.concatenate([values[name].astype(np.float64).ravel() for name in names])


def rounding_tolerance(graph: Graph, layers: Sequence[EngineLayer], *, tf32: bool = False) -> float:
    """How far rounding alone may move the outputs of `graph`, as `relative_difference` measures it.

    A model, not a bound. Each layer with a weight writes with roundoff u and adds up n products with roundoff v, so that its
    output is off by about sqrt(u^2 + n v^2 / 2) of its size, as n roundings of a sum that grows in random steps; errors of
    layers are independent and keep their relative size on the way to the outputs, so that their squares add up. Four times
    that. Sums are in single precision unless a tactic's name says otherwise. Where the engine was built with leave to use
    `tf32`, layers of single precision round what they multiply to its 10 bits.
    """
    sums = {node: read_tactic(layer.tactic).sums for layer in layers for node in layer.onnx_nodes}
    expected = expected_precisions(graph)
    total = 0.0
    for layer in weighted_layers(graph):
        node = layer.node.name
        products = layer.weight.size / max(layer.weight.shape[layer.output_axis], 1)
        summed_in = "fp16" if sums.get(node) == "fp16" else "fp32"
        precision = "tf32" if tf32 and expected[node] == "fp32" else expected[node]
        total += _ROUNDOFF.get(precision, _ROUNDOFF["fp32"]) ** 2 + products * _ROUNDOFF[summed_in] ** 2 / 2
    return _SAFETY * math.sqrt(total)
