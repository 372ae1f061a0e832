"""Every layer that masking changed held against its proved bounds, on the input that the engine itself gave it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.certificate import Certificate, LayerBound
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check, DeviationTerms, LayerDeviation
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.graph.twins import masked_layers
from masksparse_deploy.validate.arithmetic import Kernel, kernel_of
from masksparse_deploy.validate.deviations import Deviations, deviations_of
from masksparse_deploy.validate.rounding_int8 import overflow
from masksparse_deploy.validate.units import Unit, unit_of

__all__ = ["LayerPair", "check_kernels", "compare_layers", "doubts", "exposed_tensors", "layer_kernels", "layer_pairs"]

# Samples whose activations are held at a time: those of all exposed tensors are in memory together.
_CHUNK = 16

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerPair:
    """A layer of the certificate in the sparse file, its twin in the dense file, and what is proved about the two."""

    bound: LayerBound
    dense: Unit
    sparse: Unit

    @property
    def tensors(self) -> tuple[str, ...]:
        """What must be known of the engine: what the layer reads, what is added behind it, and what comes out."""
        return (self.sparse.input, *self.sparse.others, self.sparse.output)


@dataclass(frozen=True)
class _Worst:
    """The largest ratios seen so far, and what is behind the second."""

    rounding: float = 0.0
    ratio: float = -1.0
    deviation: float = 0.0
    bound: float = 0.0
    bound_terms: DeviationTerms | None = None
    measured_terms: DeviationTerms | None = None
    unbounded: bool = False


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
        units = unit_of(dense, in_dense[bound.node]), unit_of(sparse, in_sparse[bound.node])
        pairs.append(LayerPair(bound=bound, dense=units[0], sparse=units[1]))
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
    names = dict.fromkeys(name for pair in pairs for name in pair.tensors)
    return tuple(name for name in names if name not in graph.inputs)


def layer_kernels(pairs: tuple[LayerPair, ...], engine: EngineArtifact) -> dict[str, Kernel]:
    """Node name -> the kernel that the engine uses there; its doubt includes what the layer itself leaves open."""
    tactics = {node: layer.tactic for layer in engine.layers for node in layer.onnx_nodes}
    tf32 = engine.options.get("tf32") is True
    kernels = {}
    for pair in pairs:
        kernel = kernel_of(tactics.get(pair.bound.node, ""), pair.sparse.precision, tf32=tf32)
        doubt = kernel.doubt or pair.sparse.obstacle or overflow(pair.sparse)
        kernels[pair.bound.node] = replace(kernel, doubt=doubt)
    return kernels


def check_kernels(deployed: EngineArtifact, exposed: EngineArtifact, pairs: tuple[LayerPair, ...]) -> Check:
    """Whether the engine that returns its layers computes them with the kernels of the deployed one, by their names."""
    nodes = [pair.bound.node for pair in pairs]
    tactics = [{node: layer.tactic for layer in engine.layers for node in layer.onnx_nodes} for engine in (deployed, exposed)]
    others = [node for node in nodes if tactics[0].get(node) != tactics[1].get(node)]
    unnamed = [node for node in nodes if not tactics[0].get(node)]
    detail = f"all {len(nodes)} changed layers are compared in the kernels of the deployed engine"
    if others:
        detail = "compared in another kernel than the deployed one: " + "; ".join(
            f"{node} ({tactics[1].get(node) or 'no name'} instead of {tactics[0].get(node) or 'no name'})" for node in others
        )
    elif unnamed:
        detail = f"the engine names no kernel for {', '.join(unnamed)}"
    return Check(
        name="kernels of the engine with exposed layers",
        measured=float(len(others)),
        bound=None,
        tolerance=0.0,
        unit="layers",
        verdict="inconclusive" if others or unnamed else "pass",
        detail=detail,
        decides=False,
    )


def doubts(layers: tuple[LayerDeviation, ...], kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """Node name -> why it is open what the kernel of an inconclusive layer should give."""
    reasons = {}
    for layer in layers:
        kernel = kernels[layer.node]
        if layer.verdict == "inconclusive":
            name = kernel.arithmetic.name if kernel.arithmetic is not None else ""
            reasons[layer.node] = kernel.doubt or f"its sums in {name} may be larger than the format holds"
    return reasons


def compare_layers(
    session: Session,
    pairs: tuple[LayerPair, ...],
    images: npt.NDArray[np.float32],
    *,
    input_name: str,
    kernels: Mapping[str, Kernel],
    progress: Progress = silent,
) -> tuple[LayerDeviation, ...]:
    """Run the engine and compare each layer with float64 references computed from the engine's own input of that layer.

    Two statements are checked for every sample, with x the layer's input in the engine and y its output:
    |y - sparse layer(x)| is at most the rounding bound for each element; and by the certificate and the triangle inequality
    ||y - dense layer(x)|| is at most the bound of `deviations_of`.

    Args:
        session: an engine that returns `exposed_tensors`.
        pairs: the layers of the certificate.
        images: float32 (count, channels, height, width).
        input_name: the model's input.
        kernels: of `layer_kernels`; a layer with a doubt is inconclusive outside its bound instead of failed.
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
            node = pair.bound.node
            _require_finite(node, [tensors[name] for name in pair.tensors])
            arithmetic = kernels[node].arithmetic
            if arithmetic is not None:
                worst[node] = _worse(worst[node], deviations_of(pair.dense, pair.sparse, pair.bound, tensors, arithmetic))
    progress("compare layers", len(images), len(images))
    return tuple(_deviation(pair, worst[pair.bound.node], kernels[pair.bound.node]) for pair in pairs)


def _require_finite(node: str, arrays: list[Array]) -> None:
    if not all(np.isfinite(array).all() for array in arrays):
        raise ArtifactError(
            f"the engine has NaN or infinite values at the layer {node}; check the images and the precision of "
            "the model, then run 'masksparse bake' and 'masksparse build' again"
        )


def _worse(worst: _Worst, found: Deviations) -> _Worst:
    finite = np.isfinite(found.allowed)
    ratios = found.rounding[finite] / found.allowed[finite]
    worst = replace(worst, rounding=max(float(ratios.max(initial=0)), worst.rounding))
    if not finite.all():
        worst = replace(worst, unbounded=True)
    for deviation, bound_terms, measured_terms in _samples(found):
        bound = bound_terms.mask + bound_terms.rounding + bound_terms.quantization
        if np.isfinite(bound) and deviation / bound > worst.ratio:
            worst = replace(
                worst,
                ratio=deviation / bound,
                deviation=deviation,
                bound=bound,
                bound_terms=bound_terms,
                measured_terms=measured_terms,
            )
    return worst


def _samples(found: Deviations) -> Iterator[tuple[float, DeviationTerms, DeviationTerms]]:
    """For each sample the deviation from the dense layer, its bound in parts, and what was measured of each part."""
    for index, deviation in enumerate(found.deviation.tolist()):
        terms = [
            DeviationTerms(**{name: float(values[index]) for name, values in parts.items()})
            for parts in (found.bounds, found.measured)
        ]
        yield deviation, terms[0], terms[1]


def _deviation(pair: LayerPair, worst: _Worst, kernel: Kernel) -> LayerDeviation:
    within = worst.rounding <= 1 and worst.deviation <= worst.bound
    is_open = kernel.doubt is not None
    verdict: Verdict = "pass" if within else "inconclusive" if is_open else "fail"
    if kernel.arithmetic is None or (within and worst.unbounded):
        verdict = "inconclusive"
    return LayerDeviation(
        layer=pair.bound.layer,
        node=pair.bound.node,
        rounding_ratio=worst.rounding,
        deviation=worst.deviation,
        deviation_bound=worst.bound,
        tightness=worst.bound / worst.deviation if worst.deviation > 0 else None,
        verdict=verdict,
        bound_terms=worst.bound_terms,
        measured_terms=worst.measured_terms,
        arithmetic=None if kernel.arithmetic is None else kernel.arithmetic.name,
    )
