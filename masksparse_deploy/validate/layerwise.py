"""Every layer that masking changed held against its proved bounds, on the input that the engine itself gave it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.validation import DeviationTerms, LayerDeviation
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Session
from masksparse_deploy.validate.arithmetic import Kernel
from masksparse_deploy.validate.deviations import Deviations, deviations_of
from masksparse_deploy.validate.layers import LayerPair

__all__ = ["compare_layers"]

# Samples whose activations are held at a time: those of all exposed tensors are in memory together.
_CHUNK = 16

Array = npt.NDArray[Any]


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
        # both are 0 for a sample that an INT8 layer makes nothing of
        ratio = deviation / bound if bound > 0 else float("inf") if deviation > 0 else 0.0
        if ratio > worst.ratio:
            worst = replace(
                worst,
                ratio=ratio,
                deviation=deviation,
                bound=bound,
                bound_terms=bound_terms,
                measured_terms=measured_terms,
            )
    return worst


def _samples(found: Deviations) -> Iterator[tuple[float, DeviationTerms, DeviationTerms]]:
    """For each sample with a bound: the deviation from the dense layer, its bound in parts, and what was measured of each."""
    for index, deviation in enumerate(found.deviation.tolist()):
        bound, measured = (
            {name: float(values[index]) for name, values in parts.items()} for parts in (found.bounds, found.measured)
        )
        if np.isfinite(list(bound.values())).all():
            yield deviation, DeviationTerms(**bound), DeviationTerms(**measured)


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
