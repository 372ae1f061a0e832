"""The forecast: would 2:4 weights make this network faster on this machine?"""

import time
from pathlib import Path

import numpy as np
import onnx

from masksparse_deploy.core.artifacts.forecast import ConvolutionKind, Forecast, KindForecast
from masksparse_deploy.core.artifacts.timing import Speedup
from masksparse_deploy.core.config import EngineOptions, ForecastOptions
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import make_folder
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import WITHOUT_SPARSE_KERNELS, Backend
from masksparse_deploy.engine.select import choose_backend
from masksparse_deploy.engine.source import Source, read_source
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.forecast.estimate import Gain, estimate, joint_confidence, measured_speedup, median_gain
from masksparse_deploy.forecast.kinds import Census, take_census
from masksparse_deploy.forecast.layer_model import LAYER, layer_model
from masksparse_deploy.forecast.pairs import PairTimer
from masksparse_deploy.forecast.trial import cut_weights
from masksparse_deploy.forecast.words import FP32_ONLY, NO_SPARSE_KERNELS, judge
from masksparse_deploy.graph.model import WeightedLayer
from masksparse_deploy.profiling.known_times import TimeStore
from masksparse_deploy.profiling.sampling import Clock

__all__ = ["CACHE_NAME", "REPORT_NAME", "forecast"]

REPORT_NAME = "forecast.json"
CACHE_NAME = "forecast_times.json"


def forecast(
    onnx_path: Path,
    options: ForecastOptions,
    engine_options: EngineOptions,
    *,
    out: Path,
    backend: Backend | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> Forecast:
    """Time every kind of convolution with sparse tactics forbidden and allowed, and estimate what the network would gain.

    Args:
        onnx_path: the dense network in the precision that it will be deployed in.
        options: threshold, rounds, and whether the whole network is tried.
        engine_options: backend and batch.
        out: folder for forecast.json and, unless `options.cache` says otherwise, the times.
        backend: builds and runs the engines; that of `engine_options` by default.
        clock: seconds, as time.perf_counter; for backends whose device does not tell its times.
        progress: told after each kind of layer.

    Returns:
        The forecast that was written. Where the runtime or the precision has no sparse kernels nothing is timed.

    Raises:
        UsageError: there is no such file, or it does not take one batch of images.
        ArtifactError: the file is damaged, or the runtime refuses the network.
        MachineError: the backend does not work on this machine.
        OutputError: the folder cannot be written.
    """
    source = read_source(onnx_path)
    census = take_census(source.graph)
    backend = backend or choose_backend(engine_options.backend)[0]
    status = backend.status()
    no_kernels = (
        NO_SPARSE_KERNELS
        if backend.name in WITHOUT_SPARSE_KERNELS
        else ""
        if census.kinds
        else _no_kinds(source.precision, census)
    )
    kinds: tuple[KindForecast, ...] = ()
    network_ms: float | None = None
    estimated, trial = None, None
    remarks: tuple[str, ...] = ()
    if not no_kernels:
        store = TimeStore(Path(options.cache) if options.cache is not None else make_folder(out) / CACHE_NAME)
        timer = PairTimer(
            backend=backend, engine_options=engine_options, options=options, store=store, status=status, clock=clock
        )
        run = _Run(source, census, timer, progress)
        kinds = run.kinds()
        network_ms, estimated, trial = run.network(kinds)
        remarks = tuple(text for text in (store.remark, *run.remarks(kinds, estimated, trial)) if text)
    worthwhile, reason = (False, f"don't bother: {no_kernels}") if no_kernels else judge(estimated, trial, options.threshold)
    result = Forecast(
        source_sha256=source.graph.sha256,
        backend=backend.name,
        device=status.device.name if status.device is not None else "unknown",
        architecture=status.device.architecture if status.device is not None else "",
        versions=status.versions,
        precision=source.precision,
        batch=source.input_shape[0] or engine_options.batch,
        threshold=options.threshold,
        network_ms=network_ms,
        kinds=kinds,
        skipped=dict(census.skipped),
        estimate=estimated,
        trial=trial,
        worthwhile=worthwhile,
        reason=reason,
        remarks=remarks,
    )
    result.write(make_folder(out) / REPORT_NAME)
    return result


class _Run:
    """One forecast on a backend with sparse kernels."""

    def __init__(self, source: Source, census: Census, timer: PairTimer, progress: Progress) -> None:
        self._source = source
        self._census = census
        self._timer = timer
        self._progress = progress
        self._options = timer.options
        self._uncut: tuple[str, ...] = ()

    def kinds(self) -> tuple[KindForecast, ...]:
        """Every kind timed, those first that the network has most of."""
        count = len(self._census.kinds)
        # of all kinds and of the network's own time
        confidence = joint_confidence(self._options.confidence, count + 1)
        found = []
        for index, (kind, layers) in enumerate(self._census.kinds.items()):
            self._progress("timing kinds of layers", index, count)
            found.append(self._kind(kind, layers, confidence))
        self._progress("timing kinds of layers", count, count)
        return tuple(sorted(found, key=lambda kind: -len(kind.layers) * (kind.dense_ms or 0.0)))

    def _kind(self, kind: ConvolutionKind, layers: tuple[WeightedLayer, ...], confidence: float) -> KindForecast:
        names = tuple(layer.node.name for layer in layers)
        model = layer_model(kind, self._source.input_shape[0] or "batch")
        try:
            times = self._timer.compare(model, model, layer=LAYER)
        except ArtifactError as error:
            return KindForecast(kind=kind, layers=names, failure=str(error))
        gain, interval = median_gain(times.dense_ms, times.sparse_ms, confidence)
        kept_dense = times.picked is False
        return KindForecast(
            kind=kind,
            layers=names,
            dense_ms=float(np.median(times.dense_ms)),
            sparse_ms=float(np.median(times.sparse_ms)),
            # two builds with dense tactics differ by noise alone
            gain_ms=0.0 if kept_dense else gain,
            gain_interval=None if kept_dense else interval,
            dense_tactic=times.dense_tactic,
            sparse_tactic=times.sparse_tactic,
            picked=times.picked,
            from_cache=times.from_cache,
        )

    def network(self, kinds: tuple[KindForecast, ...]) -> tuple[float, Speedup | None, Speedup | None]:
        """The dense network's time, the estimate and the trial."""
        dense = onnx.load_model_from_string(self._source.content)
        self._progress("timing the network", 0, 1)
        trial = None
        if self._options.trial:
            cut, self._uncut = cut_weights(dense, self._census)
            times = self._timer.compare(dense, cut, progress=self._progress)
            dense_ms, trial = times.dense_ms, measured_speedup(times.dense_ms, times.sparse_ms, self._options.confidence)
        else:
            dense_ms = self._timer.alone(dense, progress=self._progress)
        self._progress("timing the network", 1, 1)
        gains = [
            Gain(count=len(kind.layers), ms=kind.gain_ms, **kind.gain_interval.model_dump())
            for kind in kinds
            if kind.gain_interval is not None
        ]
        return float(np.median(dense_ms)), estimate(dense_ms, gains, self._options.confidence), trial

    def remarks(self, kinds: tuple[KindForecast, ...], estimated: Speedup | None, trial: Speedup | None) -> tuple[str, ...]:
        """What else a user should know."""
        found = []
        failed = [kind for kind in kinds if kind.failure]
        if failed:
            count = sum(len(kind.layers) for kind in failed)
            found.append(f"{count} layers could not be timed and count as dense: {failed[0].failure}")
        narrow = [kind for kind in kinds if kind.picked and _adds_up_narrower(kind)]
        if narrow:
            count = sum(len(kind.layers) for kind in narrow)
            found.append(
                f"the sparse kernels of {count} layers add up in FP16 where the dense ones add up in FP32: their rounding "
                "bounds are wide, and large sums overflow (docs/precision.md)"
            )
        if self._uncut:
            found.append(f"the trial leaves {len(self._uncut)} layers dense, as a Reshape takes their channels apart")
        if estimated is not None and trial is not None and not _overlap(estimated, trial):
            found.append(
                f"the layers' gains add up to {estimated.ratio:.2f}x, and the network shows {trial.ratio:.2f}x: what layers "
                "gain depends on their neighbours, and the trial is what counts"
            )
        return tuple(found)


def _adds_up_narrower(kind: KindForecast) -> bool:
    return read_tactic(kind.sparse_tactic).sums == "fp16" and read_tactic(kind.dense_tactic).sums == "fp32"


def _overlap(one: Speedup, other: Speedup) -> bool:
    return one.interval.low <= other.interval.high and other.interval.low <= one.interval.high


def _no_kinds(precision: str, census: Census) -> str:
    """Why no layer can run a sparse kernel."""
    if not {"fp16", "int8"} & set(precision.split("+")):
        return FP32_ONLY
    reasons = "; ".join(dict.fromkeys(census.skipped.values()))
    return f"none of its {len(census.skipped)} layers with weights can run a sparse kernel ({reasons}): 1.00x"
