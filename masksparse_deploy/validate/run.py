"""The validate stage: everything that is known about a deployed pair of engines, and one verdict."""

from pathlib import Path

import numpy as np

from masksparse_deploy.core.artifacts.attribution import Attribution
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import END_TO_END, Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.rewriting import RewriteReport
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.artifacts.validation import Check, LayerDeviation, ValidationReport
from masksparse_deploy.core.config import EngineOptions, Gates
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.plans import built_options
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.graph.evaluate import unsupported_operators
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.validate.attribution import attribute
from masksparse_deploy.validate.conformal import calibration_samples, deviation_quantile
from masksparse_deploy.validate.deployed import check_weights, read_plan_graph, read_unconverted, require_chain
from masksparse_deploy.validate.engine_gates import engine_gates
from masksparse_deploy.validate.gates import accuracy_gate, flip_gate, layerwise_gate
from masksparse_deploy.validate.intervals import compare_accuracy
from masksparse_deploy.validate.kernels import check_kernels, doubts, layer_kernels
from masksparse_deploy.validate.labels import check_above_chance, require_classes
from masksparse_deploy.validate.layers import comparable, exposed_tensors, layer_pairs
from masksparse_deploy.validate.layerwise import compare_layers
from masksparse_deploy.validate.outputs import (
    check_claim,
    check_finite,
    check_outputs,
    missing_reference,
    probe_tolerance,
    read_probe,
    reference_tolerance,
    row_norms,
)
from masksparse_deploy.validate.pair import Deployed, read_deployed
from masksparse_deploy.validate.positions import check_positions, has_positions
from masksparse_deploy.validate.rewritten import BuiltFrom, check_rewritten, compared_layers, read_built_from
from masksparse_deploy.validate.rows import RowSession, find_rows
from masksparse_deploy.validate.survival import check_survival, survival
from masksparse_deploy.validate.variants import make_variants
from masksparse_deploy.validate.verdict import overall_verdict

__all__ = ["validate"]

LAYERWISE_COUNT = 64
LAYERS_ENGINE = "sparse-layers"
_STEPS = 6


def validate(
    *,
    dense_engine: Path,
    sparse_engine: Path,
    dense_onnx: Path,
    sparse_onnx: Path,
    certificate: Certificate,
    probe: Path | None,
    baked: BakeReport | None = None,
    unconverted: tuple[Path, Path] | None = None,
    profile: ProfileReport | None = None,
    rewrite: RewriteReport | None = None,
    rewritten_onnx: Path | None = None,
    samples: Samples,
    gates: Gates,
    engine_options: EngineOptions,
    out: Path,
    progress: Progress = silent,
) -> ValidationReport:
    """Hold the deployed engines against the files, the references, the certificate and the user's gates.

    Args:
        dense_engine: metadata (engine.json) of the dense engine.
        sparse_engine: metadata of the sparse engine.
        dense_onnx: the file the dense engine was built from.
        sparse_onnx: the sparse file, which certificate and references are about; its engine was built from it or from the
            rewritten file.
        certificate: proved bounds about the two files.
        probe: images with PyTorch's outputs, from the bake stage; None where there are none.
        baked: the report of the bake stage; None leaves what only it can tell of the layers' sparsity unchecked.
        unconverted: the dense and the sparse ONNX file before they were converted to a reduced precision, which tell what that
            cost; without them the weights of the two files count as exact.
        profile: times of the two engines, for the gate of the speedup; None leaves that gate undecided.
        rewrite: the report of the rewrite stage, where there was one.
        rewritten_onnx: the file that it wrote, if it wrote one.
        samples: labelled images for accuracy; the first ones also for the references.
        gates: what the user demands.
        engine_options: the number of threads, and the cache of kernel times for the engine with exposed layers, which is
            otherwise built as the sparse one was.
        out: folder for the engine with exposed layers.
        progress: told how far the work is.

    Raises:
        ArtifactError: engines, files and certificate do not belong together, or one is damaged.
        MachineError: the engines' backend does not work on this machine.
        UsageError: a file is missing, the samples do not fit the model, or it is no classifier of their labels.
    """
    progress("validate", 0, _STEPS)
    dense = read_deployed("dense", dense_onnx, dense_engine, samples, engine_options.threads)
    sparse = read_deployed("sparse", sparse_onnx, sparse_engine, samples, engine_options.threads)
    built_from = read_built_from(sparse.graph, sparse_onnx, rewrite, rewritten_onnx)
    rewritten = built_from.graph if built_from.is_rewritten else None
    require_chain(dense.graph, sparse.graph, dense.engine, sparse.engine, certificate, rewritten=rewritten)
    networks = None if unconverted is None else read_unconverted(unconverted, baked)
    for network in (dense, sparse):
        require_classes(network.outputs, samples.labels)
    dense_plan, sparse_plan = (read_plan_graph(network.engine, network.engine_path) for network in (dense, sparse))
    survived = survival(sparse.graph, sparse_plan, sparse.engine, baked, rewritten=rewritten)
    checks = [check_rewritten(sparse.graph, built_from)] if built_from.is_rewritten else []
    masks_positions = has_positions(sparse.graph, baked)
    if masks_positions:
        checks.append(check_positions(sparse.graph, sparse_plan, baked, is_rewritten=built_from.is_rewritten))
    checks += [check_survival(survived, sparse.engine)] if survived or not masks_positions else []
    checks += [
        check_weights("weights of the sparse plan", built_from.graph, sparse_plan, sparse.engine.backend),
        check_weights("weights of the dense plan", dense.graph, dense_plan, dense.engine.backend),
    ]
    checks.append(check_finite(dense.outputs, sparse.outputs))
    progress("validate", 1, _STEPS)
    layers: tuple[LayerDeviation, ...] = ()
    attribution: Attribution | None = None
    # NaN cannot be compared with anything, and its check has failed already
    if checks[-1].verdict == "pass":
        checks += _reference_checks(dense, sparse, has_probe=probe is not None)
        progress("validate", 2, _STEPS)
        checks += _probe_checks(dense, sparse, probe)
        progress("validate", 3, _STEPS)
        checks += _claim_checks(dense, sparse, certificate)
        progress("validate", 4, _STEPS)
        found, layers, attribution = _layer_checks(
            dense, sparse, certificate, gates, engine_options, built_from, networks, out, progress
        )
        checks += found
    progress("validate", 5, _STEPS)
    calibration = calibration_samples(len(samples), gates)
    deviation = None
    if np.isfinite(dense.outputs).all() and np.isfinite(sparse.outputs).all():
        deviation = deviation_quantile(dense.outputs, sparse.outputs, calibration, gates)
    classes = dense.outputs.argmax(1)
    decided = ~calibration if gates.conformal_separate else np.ones(len(samples), dtype=np.bool_)
    accuracy = compare_accuracy(classes[decided], sparse.outputs.argmax(1)[decided], samples.labels[decided], gates.confidence)
    checks += [check_above_chance(classes, samples.labels), accuracy_gate(accuracy, gates), flip_gate(accuracy, gates)]
    checks += engine_gates(
        gates,
        layers=survived,
        dense_engine_sha256=dense.engine.digest,
        sparse_engine=sparse.engine,
        certificate=certificate,
        profile=profile,
    )
    progress("validate", _STEPS, _STEPS)
    return ValidationReport(
        sparse_engine_sha256=sparse.engine.digest,
        dense_engine_sha256=dense.engine.digest,
        certificate_sha256=certificate.digest,
        data_sha256=samples.digest,
        checks=tuple(checks),
        layers=layers,
        accuracy=accuracy,
        verdict=overall_verdict(checks),
        survival=survived,
        deviation=deviation,
        attribution=attribution,
    )


def _reference_checks(dense: Deployed, sparse: Deployed, *, has_probe: bool) -> list[Check]:
    checks = []
    for network in (dense, sparse):
        name = f"{network.name} engine against float64"
        missing = unsupported_operators(network.graph)
        if missing:
            reason = f"the float64 reference does not cover {', '.join(missing)}"
            checks.append(missing_reference(name, reason, decides=not has_probe))
            continue
        against = f"the {network.name} ONNX file evaluated in float64"
        tolerance = reference_tolerance(network.engine.precision)
        outputs = network.outputs[: len(network.reference)]
        checks.append(check_outputs(name, outputs, network.reference, against=against, tolerance=tolerance))
    return checks


def _probe_checks(dense: Deployed, sparse: Deployed, probe: Path | None) -> list[Check]:
    tensors = None if probe is None else read_probe(probe)
    checks = []
    for network in (dense, sparse):
        name = f"{network.name} engine against PyTorch"
        if tensors is None:
            reason = "no probe file was given, so the engine was not compared with PyTorch"
            checks.append(missing_reference(name, reason, decides=bool(unsupported_operators(network.graph))))
            continue
        outputs, reference = network.run(tensors["images"]), tensors[f"{network.name}_outputs"]
        against = f"the {network.name} PyTorch model in float32"
        checks.append(
            check_outputs(name, outputs, reference, against=against, tolerance=probe_tolerance(network.engine.precision))
        )
    return checks


def _claim_checks(dense: Deployed, sparse: Deployed, certificate: Certificate) -> list[Check]:
    """The certificate's claims about the network's outputs, on those of its samples that there are references for."""
    checks = []
    for claim in certificate.claims:
        if claim.name not in END_TO_END:
            continue
        count = claim.sample_count or 0
        own = {dense.samples.digest, dense.samples.first(count or None).digest}
        if claim.bound is None or certificate.data_sha256 not in own:
            reason = claim.detail if claim.bound is None else "the certificate was made for other samples"
            checks.append(missing_reference(claim.name, f"nothing is proved here: {reason}", decides=False))
            continue
        count = min(count or len(dense.reference), len(dense.reference))
        distances = row_norms(dense.outputs[:count].astype(np.float64) - sparse.outputs[:count])
        rounding = [row_norms(network.outputs[:count] - network.reference[:count]) for network in (dense, sparse)]
        checks.append(check_claim(claim, claim.bound, float(distances.max()), float((rounding[0] + rounding[1]).max()), count))
    return checks


def _as_deployed(engine: EngineArtifact, options: EngineOptions) -> EngineOptions:
    """The options that the deployed engine was built with, as others would give other kernels; threads and cache as asked."""
    asked = options.model_dump(include={"backend", "threads", "timing_cache"})
    return built_options(engine.options).model_copy(update=asked)


def _layer_checks(
    dense: Deployed,
    sparse: Deployed,
    certificate: Certificate,
    gates: Gates,
    options: EngineOptions,
    built_from: BuiltFrom,
    unconverted: tuple[Graph, Graph] | None,
    out: Path,
    progress: Progress,
) -> tuple[list[Check], tuple[LayerDeviation, ...], Attribution | None]:
    """Build an engine of the same file that also returns the changed layers, and compare them."""
    changed = layer_pairs(dense.graph, sparse.graph, certificate)
    places = find_rows(built_from, exposed_tensors(changed, sparse.graph))
    pairs = comparable(changed, built_from.graph, places)
    in_another_form = [compared_layers(changed, pairs)] if len(pairs) < len(changed) else []
    if not pairs:
        return in_another_form or [layerwise_gate((), {}, gates)], (), None
    backend = get_backend(sparse.engine.backend)
    exposed = tuple(places[name][0] if name in places else name for name in exposed_tensors(pairs, sparse.graph))
    like = _as_deployed(sparse.engine, options)
    engine = backend.build(built_from.path, out, like, name=LAYERS_ENGINE, expose=exposed, progress=progress)
    kernels = layer_kernels(pairs, engine)
    images = sparse.samples.first(LAYERWISE_COUNT).images
    (input_name,) = sparse.graph.inputs
    with backend.open(out / f"{LAYERS_ENGINE}.engine.json", threads=options.threads) as opened:
        session = RowSession(opened, places)
        layers = compare_layers(
            session,
            pairs,
            images,
            input_name=input_name,
            kernels=kernels,
            progress=progress,
        )
        outputs = session.run(images)[session.output_names[0]]
        attribution = attribute(
            session,
            pairs,
            make_variants(dense.graph, sparse.graph, unconverted),
            images,
            sparse.outputs[: len(images)],
            input_name=input_name,
            progress=progress,
        )
    same = check_outputs(
        "deployed engine against the one with exposed layers",
        sparse.outputs[: len(images)],
        outputs,
        against="the engine of the same file that returns its layers too",
        tolerance=reference_tolerance(sparse.engine.precision),
    )
    engines = (sparse.engine, sparse.engine_path), (engine, out / f"{LAYERS_ENGINE}.engine.json")
    plans = read_plan_graph(*engines[0]), read_plan_graph(*engines[1])
    kept = check_kernels(sparse.engine, engine, pairs, plans)
    found = [same, kept, *in_another_form, layerwise_gate(layers, doubts(layers, kernels), gates)]
    return found, layers, attribution
