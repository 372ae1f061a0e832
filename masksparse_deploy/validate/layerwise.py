"""Every layer that masking changed held against its proved bounds, on the input that the engine itself gave it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.certificate import Certificate, LayerBound
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import LayerDeviation
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.graph.evaluate import apply_layer
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.graph.twins import masked_layers
from masksparse_deploy.validate.outputs import row_norms
from masksparse_deploy.validate.rounding import outside_bound, rounding_bound

__all__ = ["LayerPair", "compare_layers", "exposed_tensors", "layer_pairs", "uncovered_layers"]

# Samples whose activations are held at a time: those of all exposed tensors are in memory together.
_CHUNK = 16

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPair:
    """A layer of the certificate in the sparse file, its twin in the dense file, and what is proved about the two."""

    bound: LayerBound
    dense: WeightedLayer
    sparse: WeightedLayer

    @property
    def input(self) -> str:
        """The tensor the layer reads."""
        return self.sparse.node.inputs[0]

    @property
    def output(self) -> str:
        """The tensor the layer computes, before any activation."""
        return self.sparse.node.outputs[0]


@dataclass(frozen=True)
class _Worst:
    """The largest ratios seen so far, and the deviation and bound behind the second."""

    rounding: float = 0.0
    ratio: float = -1.0
    deviation: float = 0.0
    bound: float = 0.0


def layer_pairs(dense: Graph, sparse: Graph, certificate: Certificate) -> tuple[LayerPair, ...]:
    """Find the certificate's layers in both files.

    Raises:
        ArtifactError: a layer of the certificate is missing in one of the files, or a changed layer in the certificate.
    """
    in_dense = {layer.node.name: layer for layer in weighted_layers(dense)}
    in_sparse = {layer.node.name: layer for layer in weighted_layers(sparse)}
    pairs = []
    for bound in certificate.layers:
        for where, found in (("dense", in_dense), ("sparse", in_sparse)):
            if bound.node not in found:
                raise ArtifactError(
                    f"the certificate bounds the layer {bound.node}, which the {where} ONNX file does not have; "
                    "run 'masksparse certify' again on these files"
                )
        pairs.append(LayerPair(bound=bound, dense=in_dense[bound.node], sparse=in_sparse[bound.node]))
    bounded = {bound.node for bound in certificate.layers}
    for _, layer in masked_layers(dense, sparse):
        if layer.node.name not in bounded:
            raise ArtifactError(
                f"the certificate has no bound for the layer {layer.node.name}, which differs between the two ONNX files; "
                "run 'masksparse certify' again on these files"
            )
    return tuple(pairs)


def exposed_tensors(pairs: tuple[LayerPair, ...], graph: Graph) -> tuple[str, ...]:
    """Inputs and outputs of the layers that the engine must return; the model's own input is known without that."""
    names = dict.fromkeys(name for pair in pairs for name in (pair.input, pair.output))
    return tuple(name for name in names if name not in graph.inputs)


def uncovered_layers(pairs: tuple[LayerPair, ...], engine: EngineArtifact) -> dict[str, str]:
    """Node name -> why the rounding bound does not cover the kernel that the engine uses there."""
    tactics = {node: layer.tactic for layer in engine.layers for node in layer.onnx_nodes}
    reasons = {pair.bound.node: outside_bound(tactics.get(pair.bound.node, ""), engine.precision) for pair in pairs}
    return {node: reason for node, reason in reasons.items() if reason is not None}


def compare_layers(
    session: Session,
    pairs: tuple[LayerPair, ...],
    images: npt.NDArray[np.float32],
    *,
    input_name: str,
    precision: str,
    uncovered: Mapping[str, str],
    progress: Progress = silent,
) -> tuple[LayerDeviation, ...]:
    """Run the engine and compare each layer with float64 references computed from the engine's own input of that layer.

    Two statements are checked for every sample, with x the layer's input in the engine and y its output:
    |y - sparse layer(x)| is at most the rounding bound for each element; and by the certificate and the triangle inequality
    ||y - dense layer(x)|| <= difference_norm ||x|| + bias_difference sqrt(positions) + ||rounding bound||.

    Args:
        session: an engine that returns `exposed_tensors`.
        pairs: the layers of the certificate.
        images: float32 (count, channels, height, width).
        input_name: the model's input.
        precision: of the engine's weights and activations: "fp32", "fp16" or "bf16".
        uncovered: nodes whose kernel the rounding bound does not cover, with the reason; outside their bound they are
            inconclusive instead of failed.
        progress: told how many images are done.

    Raises:
        ArtifactError: the engine computes NaN or infinite values inside the network.
    """
    worst = dict.fromkeys((pair.bound.node for pair in pairs), _Worst())
    for start in range(0, len(images), _CHUNK):
        progress("compare layers", start, len(images))
        chunk = images[start : start + _CHUNK]
        tensors = {input_name: chunk, **session.run(chunk)}
        for pair in pairs:
            worst[pair.bound.node] = _worse(worst[pair.bound.node], pair, tensors[pair.input], tensors[pair.output], precision)
    progress("compare layers", len(images), len(images))
    return tuple(_deviation(pair, worst[pair.bound.node], pair.bound.node in uncovered) for pair in pairs)


def _worse(worst: _Worst, pair: LayerPair, x: Array, y: Array, precision: str) -> _Worst:
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ArtifactError(
            f"the engine has NaN or infinite values at the layer {pair.bound.node}; check the images and the precision of "
            "the model, then run 'masksparse bake' and 'masksparse build' again"
        )
    allowed = rounding_bound(pair.sparse, x, precision)
    rounding = float((np.abs(y - apply_layer(pair.sparse, x)) / allowed).max())
    worst = replace(worst, rounding=max(rounding, worst.rounding))
    for deviation, bound in _deviations(pair, x, y, allowed):
        if deviation / bound > worst.ratio:
            worst = replace(worst, ratio=deviation / bound, deviation=deviation, bound=bound)
    return worst


def _deviations(pair: LayerPair, x: Array, y: Array, allowed: Array) -> Iterator[tuple[float, float]]:
    """||engine output - dense layer|| and its bound for each sample."""
    proved = pair.bound
    offset = proved.bias_difference * np.sqrt(proved.output_positions)
    bounds = proved.difference_norm * row_norms(x) + offset + row_norms(allowed)
    yield from zip(row_norms(y - apply_layer(pair.dense, x)).tolist(), bounds.tolist(), strict=True)


def _deviation(pair: LayerPair, worst: _Worst, is_uncovered: bool) -> LayerDeviation:
    within = worst.rounding <= 1 and worst.deviation <= worst.bound
    verdict: Verdict = "pass" if within else "inconclusive" if is_uncovered else "fail"
    return LayerDeviation(
        layer=pair.bound.layer,
        node=pair.bound.node,
        rounding_ratio=worst.rounding,
        deviation=worst.deviation,
        deviation_bound=worst.bound,
        tightness=worst.bound / worst.deviation if worst.deviation > 0 else None,
        verdict=verdict,
    )
