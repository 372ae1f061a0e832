"""The certify stage: two ONNX files and samples in, a certificate out."""

import math
from pathlib import Path

import numpy as np

from masksparse_deploy.certify.claims import (
    data_free_claim,
    inconclusive_claim,
    layerwise_claim,
    of_masked_positions,
    sample_claim,
    smallest,
)
from masksparse_deploy.certify.data_free import data_free_bound
from masksparse_deploy.certify.layers import known_shapes, layer_bound
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair, read_pair
from masksparse_deploy.certify.propagation import Propagation
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.rule import NoRuleError
from masksparse_deploy.core.artifacts.certificate import DATA_FREE, END_TO_END, Certificate, Claim, LayerBound
from masksparse_deploy.core.config import CertifyOptions
from masksparse_deploy.core.decimals import rounded_up
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.evaluate import require_images, unsupported_operators
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.graph.reader import weighted_layers
from masksparse_deploy.graph.twins import masked_layers

__all__ = ["ball_radius", "certify", "certify_pair"]

_OVERFLOW = "The bound is beyond the largest 64-bit number: the network is too deep for it."


def certify(
    dense_path: Path,
    sparse_path: Path,
    samples: Samples,
    options: CertifyOptions,
    *,
    norms: NormCache | None = None,
    progress: Progress = silent,
) -> Certificate:
    """Bound how far the sparse file's network can be from the dense file's.

    Args:
        dense_path: ONNX file of the dense network.
        sparse_path: its masked twin: the same graph with other weights.
        samples: images as the network takes them; the first `options.sample_count` are propagated, the largest norm of all is
            the radius of the data-free claim.
        options: number of samples and the frequency grid.
        norms: known operator norms, of the grid of `options`; none if None.
        progress: called as the work goes on.

    Raises:
        UsageError: a file is missing, or the images don't fit the model.
        ArtifactError: a file is damaged or holds NaN, or the two files don't belong together.
    """
    pair = read_pair(dense_path, sparse_path)
    return certify_pair(pair, samples, options, names=(str(dense_path), str(sparse_path)), norms=norms, progress=progress)


def certify_pair(
    pair: Pair,
    samples: Samples,
    options: CertifyOptions,
    *,
    names: tuple[str, str],
    norms: NormCache | None = None,
    progress: Progress = silent,
) -> Certificate:
    """The same for two graphs already read, which messages call `names`; raises as `certify` does."""
    _require_finite(pair, names)
    require_images(pair.dense, samples.images)
    if len(pair.dense.outputs) != 1:
        raise UsageError(
            f"{names[0]} has {len(pair.dense.outputs)} outputs ({', '.join(pair.dense.outputs)}); certify needs one"
        )
    norms = NormCache(grid=options.grid) if norms is None else norms
    assert norms.grid == options.grid, "the certificate records the grid of its norms"
    missing = unsupported_operators(pair.dense)
    run = None if missing else propagate(pair, samples.first(options.sample_count).images, norms, progress=progress)
    shapes = known_shapes(pair.dense) if run is None else dict(run.shapes)
    layers = _layers(pair, shapes, norms, progress)
    claims = (
        layerwise_claim(layers, {} if run is None else run.gains),
        *_end_to_end_claims(pair, run, missing, samples, norms),
    )
    if pair.dense_masks or pair.sparse_masks:
        claims = tuple(of_masked_positions(claim) for claim in claims)
    return Certificate.sealed(
        dense_sha256=pair.dense.sha256,
        sparse_sha256=pair.sparse.sha256,
        data_sha256=samples.digest,
        grid=options.grid,
        layers=layers,
        claims=claims,
        smallest=smallest(claims),
        unsupported=missing if run is None else run.missing,
    )


def _layers(pair: Pair, shapes: dict[str, tuple[int, ...]], norms: NormCache, progress: Progress) -> tuple[LayerBound, ...]:
    masked = _masked_layers(pair)
    names = [dense.node.name for dense, _ in masked]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"two masked layers are called {name}, so that their bounds could be mixed up; rename one node")
    bounds = []
    for index, (dense, sparse) in enumerate(masked):
        progress("bounding layers", index, len(masked))
        if not {dense.node.inputs[0], dense.node.outputs[0]} <= shapes.keys():
            raise UsageError(
                f"the image size at {dense.node.name} is not in the ONNX file; export the model with a fixed height and width"
            )
        try:
            stored_name = pair.stored_names[dense.node.outputs[0]]
            bounds.append(layer_bound(dense, sparse, stored_name, shapes, norms, pair.positions(dense.node)))
        except NoRuleError as error:
            raise UsageError(f"{dense.node.name} is masked, and there is no bound for {error}; leave it dense") from error
    progress("bounding layers", len(masked), len(masked))
    return tuple(bounds)


def _masked_layers(pair: Pair) -> tuple[tuple[WeightedLayer, WeightedLayer], ...]:
    """Those whose weights or biases are masked or differ, and those of whose outputs only some positions are computed."""
    found = {dense.node.outputs[0] for dense, _ in masked_layers(pair.dense, pair.sparse)}
    both = zip(weighted_layers(pair.dense), weighted_layers(pair.sparse), strict=True)
    return tuple(layers for layers in both if layers[0].node.outputs[0] in {*found, *pair.dense_masks, *pair.sparse_masks})


def _end_to_end_claims(
    pair: Pair, run: Propagation | None, missing: tuple[str, ...], samples: Samples, norms: NormCache
) -> tuple[Claim, ...]:
    if run is None or run.missing:
        names = ", ".join(missing if run is None else run.missing)
        reason = f"The network recursion has no rule for {names}; only the layerwise claim holds for this network."
        return tuple(inconclusive_claim(name, reason) for name in END_TO_END)
    if run.dense.ndim != 2 or run.dense.shape[1] < 2:
        reason = (
            f"The output has the shape {run.dense.shape[1:]} for each sample, not (classes,): there is no class to certify."
        )
        return tuple(inconclusive_claim(name, reason) for name in END_TO_END)
    return (
        _data_free(pair, run, samples, norms),
        *(_per_sample(name, run, samples.digest) for name in END_TO_END if name != DATA_FREE),
    )


def _data_free(pair: Pair, run: Propagation, samples: Samples, norms: NormCache) -> Claim:
    radius = ball_radius(samples)
    try:
        bound = data_free_bound(pair, radius=radius, shapes=run.shapes, norms=norms)
    except NoRuleError as error:
        return inconclusive_claim(DATA_FREE, f"There is no data-free rule for {error}.")
    if not math.isfinite(bound):
        return inconclusive_claim(DATA_FREE, _OVERFLOW)
    return data_free_claim(bound, radius=radius, run=run, data_sha256=samples.digest)


def ball_radius(samples: Samples) -> float:
    """The l2 norm that no image exceeds, rounded up to the digits that statements show."""
    flat = samples.images.reshape(len(samples), -1)
    return rounded_up(max(float(np.linalg.norm(image.astype(np.float64))) for image in flat))


def _per_sample(name: str, run: Propagation, data_sha256: str) -> Claim:
    if name not in run.bounds:
        reasons = ", ".join(run.missing_norms)
        return inconclusive_claim(name, f"From measured norms alone there is no rule for {reasons}.")
    if not np.isfinite(run.bounds[name]).all():
        return inconclusive_claim(name, _OVERFLOW)
    return sample_claim(name, run, data_sha256=data_sha256)


def _require_finite(pair: Pair, names: tuple[str, str]) -> None:
    sides = ((pair.dense, pair.dense_masks), (pair.sparse, pair.sparse_masks))
    for (graph, masks), path in zip(sides, names, strict=True):
        for masked in masks.values():
            if not np.isfinite(masked.constant.astype(np.float64)).all():
                raise ArtifactError(
                    f"{path}: masked positions of {masked.conv.name} hold NaN or infinite values; bake the masks again"
                )
        for name, array in graph.constants.items():
            if array.dtype.kind in "fV" and name in _weight_names(pair) and not np.isfinite(array).all():
                raise ArtifactError(
                    f"{path}: the weight {name!r} holds NaN or infinite values; train or export the model again"
                )


def _weight_names(pair: Pair) -> frozenset[str]:
    """Constants that may not be infinite: all but the limits of Clip."""
    return frozenset(name for node in pair.dense.nodes if node.op != "Clip" for name in node.inputs)
