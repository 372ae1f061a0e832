"""The paired comparison: the sparse engine against its dense twin, with the dense engine against itself as control."""

import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import ProfileReport, RunConditions, Speedup
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.select import get_backend
from masksparse_deploy.profiling import conditions
from masksparse_deploy.profiling.latencies import (
    independent_blocks,
    latency,
    median_interval,
    round_ratios,
)
from masksparse_deploy.profiling.sampling import Clock, clock_step_ms, sample_rounds

__all__ = ["profile_pair"]

Array = npt.NDArray[np.float64]

# Fewer blocks than these leave the test for correlated neighbours too weak.
_FEWEST_BLOCKS = 20
# Options, versions and device that must agree: with another of these, more than the weights would decide the ratio.
_COMPARED = ("backend", "precision", "options", "versions", "device", "exposed")


def profile_pair(
    dense_metadata_path: Path,
    sparse_metadata_path: Path,
    images: npt.NDArray[np.float32],
    engine_options: EngineOptions,
    profile_options: ProfileOptions,
    *,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> ProfileReport:
    """Time both engines in one process, interleaved in random order with a second handle of the dense engine.

    Args:
        dense_metadata_path: the dense twin's engine.json.
        sparse_metadata_path: the sparse engine's engine.json.
        images: float32 (count, channels, height, width); the first batch is used, repeated where there are too few.
        engine_options: the batch and the threads to run with.
        profile_options: rounds, inferences a round, warm-up, confidence and seed.
        clock: seconds, as time.perf_counter.
        progress: told after each round.

    Returns:
        The report. A run whose figures must not be used says so in `invalid_because`; it is no error.

    Raises:
        UsageError: a file is missing, or there are no images or of another shape.
        ArtifactError: an engine is damaged, or the two differ in more than their weights.
        MachineError: the backend does not work on this machine.
    """
    dense_engine = EngineArtifact.read(dense_metadata_path)
    sparse_engine = EngineArtifact.read(sparse_metadata_path)
    _check_twins(dense_engine, sparse_engine)
    if len(images) == 0:
        raise UsageError("there are no images to time the engines with; the test data is empty")
    backend = get_backend(dense_engine.backend)
    details = conditions.machine_details()
    step_ms = clock_step_ms(clock)
    batch = engine_options.batch
    with ExitStack() as stack:
        engines, shapes = {}, {}
        for name, path in (("dense", dense_metadata_path), ("control", dense_metadata_path), ("sparse", sparse_metadata_path)):
            session = stack.enter_context(backend.open(path, threads=engine_options.threads))
            batch = session.input_shape[0] or engine_options.batch
            shapes[name] = session.input_shape
            engines[name] = session.prepare(_one_batch(images, batch))
        if shapes["dense"] != shapes["sparse"]:
            raise _no_twins("input shape", shapes["dense"], shapes["sparse"])
        times = sample_rounds(engines, profile_options, clock=clock, progress=progress)
    # less than one step of the clock reads as zero
    times = {name: np.maximum(values, step_ms) for name, values in times.items()}
    dense, sparse = (latency(times[name].ravel(), batch=batch) for name in ("dense", "sparse"))
    speedup, blocks = _speedup(times["dense"], times["sparse"], profile_options.confidence)
    control, _ = _speedup(times["dense"], times["control"], profile_options.confidence)
    problems = (
        conditions.check_round_count(profile_options.rounds, profile_options.confidence),
        conditions.check_clock(step_ms, min(dense.median_ms, sparse.median_ms)),
        conditions.check_control(control),
        conditions.check_same_arithmetic(speedup) if _same_arithmetic(dense_engine, sparse_engine) else None,
        conditions.check_drift(times["dense"]),
        conditions.check_independence(blocks),
    )
    device = backend.status().device or dense_engine.device
    details["clock_step_ms"] = f"{step_ms:.3g}"
    details["rounds_per_block"] = str(profile_options.rounds // len(blocks))
    if device != dense_engine.device:
        details["built_on"] = dense_engine.device.name
    return ProfileReport(
        dense_engine_sha256=dense_engine.digest,
        sparse_engine_sha256=sparse_engine.digest,
        backend=dense_engine.backend,
        device=device.name,
        dense=dense,
        sparse=sparse,
        speedup=speedup,
        control=control,
        sparse_kernels=sparse_engine.sparse_kernels,
        conditions=RunConditions(
            batch=batch,
            threads=engine_options.threads,
            warmup_count=profile_options.warmup,
            round_count=profile_options.rounds,
            inferences_per_round=profile_options.inferences_per_round,
            seed=profile_options.seed,
            details=details,
        ),
        invalid_because=tuple(problem for problem in problems if problem is not None),
    )


def _same_arithmetic(dense: EngineArtifact, sparse: EngineArtifact) -> bool:
    """Whether both engines have the same operators and are known to run no sparse kernel."""
    if sparse.own_operators:
        return False
    dense_layers, sparse_layers = ([layer.name for layer in engine.layers] for engine in (dense, sparse))
    return dense_layers == sparse_layers and all(layer.is_sparse is False for layer in sparse.layers)


def _check_twins(dense: EngineArtifact, sparse: EngineArtifact) -> None:
    """Refuse two engines that differ in more than their weights."""
    for field in _COMPARED:
        values = [getattr(engine, field) for engine in (dense, sparse)]
        if values[0] != values[1]:
            raise _no_twins(field, *values)


def _no_twins(what: str, dense: object, sparse: object) -> ArtifactError:
    return ArtifactError(
        f"the engines differ in {what}: dense has {dense}, sparse has {sparse}; their ratio would not tell what sparsity does: "
        "build both from the two files of one bake, with the same options on the same device"
    )


def _one_batch(images: npt.NDArray[np.float32], batch: int) -> npt.NDArray[np.float32]:
    """The first `batch` images, from the first again where there are fewer."""
    return images[np.arange(batch) % len(images)]


def _speedup(dense_ms: Array, sparse_ms: Array, confidence: float) -> tuple[Speedup, Array]:
    """The median ratio with its interval, and the independent values (blocks of rounds) that the interval was made from."""
    ratios = round_ratios(dense_ms, sparse_ms)
    blocks, _ = independent_blocks(ratios, minimum=_FEWEST_BLOCKS)
    interval = median_interval(blocks, confidence)
    ratio = float(np.median(ratios))
    return (
        Speedup(
            ratio=ratio,
            # the median of all rounds may lie just outside an interval made from blocks
            interval=Interval(
                low=min(interval.low, ratio), high=max(interval.high, ratio), confidence=min(confidence, interval.coverage)
            ),
        ),
        blocks,
    )
