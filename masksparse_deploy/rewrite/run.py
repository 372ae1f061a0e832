"""The rewrite stage: a sparse file in a form that the runtime of this machine runs faster, and the report of it."""

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx

from masksparse_deploy.core.artifacts.rewriting import FewerOutputs, LayerRewrite, RewriteReport, TimedForm
from masksparse_deploy.core.channel_block import channel_block
from masksparse_deploy.core.config import EngineOptions, RewriteOptions
from masksparse_deploy.core.errors import ArtifactError, UsageError
from masksparse_deploy.core.files import make_folder, write_atomic
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.engine.protocol import Backend
from masksparse_deploy.engine.select import choose_backend
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import parse_graph, read_graph
from masksparse_deploy.profiling.known_times import TimeStore
from masksparse_deploy.profiling.sampling import Clock
from masksparse_deploy.rewrite.choose import Choice, TimedLayer, choose_forms
from masksparse_deploy.rewrite.forms import DENSE, forms_of, gathered_positions, rewritten
from masksparse_deploy.rewrite.measure import Stopwatch
from masksparse_deploy.rewrite.model_file import load_model, rewritten_bytes
from masksparse_deploy.rewrite.networks import SPARSE, Network, Networks
from masksparse_deploy.rewrite.outputs import fewer_outputs
from masksparse_deploy.rewrite.sites import Site, find_sites
from masksparse_deploy.rewrite.surroundings import LAYER, input_size, surrounded
from masksparse_deploy.rewrite.verify import differences

__all__ = ["CACHE_NAME", "REPORT_NAME", "REWRITTEN_NAME", "rewrite"]

REWRITTEN_NAME = "rewritten.onnx"
REPORT_NAME = "rewrite.json"
CACHE_NAME = "rewrite_times.json"

_NOTHING = "the file has no layer with 1xN blocks or masked positions: nothing to rewrite"
_UNKNOWN_SIZE = "the file does not fix the height and width of its input, so that it cannot be timed"


def rewrite(
    sparse_path: Path,
    options: RewriteOptions,
    engine_options: EngineOptions,
    *,
    out: Path,
    backend: Backend | None = None,
    clock: Clock = time.perf_counter,
    progress: Progress = silent,
) -> RewriteReport:
    """Time the forms of every layer on this machine and write the file with the fastest ones, if it is faster as a whole.

    Args:
        sparse_path: the sparse file, as baked.
        options: what is rewritten, and how long is timed.
        engine_options: backend, batch and threads that the file is meant for.
        out: folder for rewritten.onnx, if one is written, rewrite.json and, unless `options.cache` says otherwise, the times;
            a rewritten.onnx of an earlier run is removed where none is written.
        backend: builds and runs the engines; that of `engine_options` by default.
        clock: seconds, as time.perf_counter.
        progress: told after each layer and each network that was timed.

    Returns:
        The report that was written.

    Raises:
        UsageError: there is no such file, it would be overwritten, or it is too large for one file.
        ArtifactError: the file is damaged, or its weights do not keep what its annotations say.
        MachineError: the backend does not work on this machine.
        OutputError: the folder cannot be written.
    """
    graph = read_graph(sparse_path)
    if sparse_path.resolve() == (out / REWRITTEN_NAME).resolve():
        raise UsageError(f"{sparse_path} would be overwritten by what is made from it; choose another output folder than {out}")
    sites = find_sites(graph)
    backend = backend or choose_backend(engine_options.backend)[0]
    store = TimeStore(Path(options.cache) if options.cache is not None else make_folder(out) / CACHE_NAME)
    stopwatch = Stopwatch(
        backend=backend, engine_options=engine_options, options=options, store=store, status=backend.status(), clock=clock
    )
    run = _Run(graph, sparse_path, sites, options, stopwatch, progress)
    return run.write(out)


class _Run:
    """One run of the stage."""

    def __init__(
        self,
        graph: Graph,
        path: Path,
        sites: Sequence[Site],
        options: RewriteOptions,
        stopwatch: Stopwatch,
        progress: Progress,
    ) -> None:
        self._graph = graph
        self._path = path
        self._sites = sites
        self._options = options
        self._stopwatch = stopwatch
        self._progress = progress
        self._block = channel_block()
        # TensorRT 8.6 leaves the "add" of ScatterND out without saying so (onnx-tensorrt, issue 957)
        self._can_add = "tensorrt" not in stopwatch.backend.name
        self._timed: dict[str, TimedLayer] = {}
        self._obstacles = {site.name: site.obstacle for site in sites if site.obstacle}
        self._remarks = [text for text in (stopwatch.store.remark,) if text]

    def write(self, out: Path) -> RewriteReport:
        """Choose, write and check the file, and write the report."""
        source, choice = None, Choice()
        if not self._sites:
            self._remarks.append(_NOTHING)
        elif self._options.mode != "never":
            source = load_model(self._path)
            choice = self._always(source) if self._options.mode == "always" else self._measured(source)
        path, written = make_folder(out) / REWRITTEN_NAME, None
        if source is not None and choice.network != SPARSE:
            block = self._block if choice.network.without_unread else None
            content = rewritten_bytes(rewritten(source, choice.network.forms, unread_block=block), self._path)
            written = parse_graph(content, name=str(path))
            wrong = differences(self._graph, written)
            if wrong:
                raise ArtifactError(
                    f"the rewritten file would not be the function of {self._path} ({'; '.join(wrong[:3])}); nothing was "
                    "written: this is a bug, please report it; rewrite.mode never leaves the stage out"
                )
            write_atomic(path, content)
        else:
            path.unlink(missing_ok=True)
        report = self._report(choice, written)
        report.write(out / REPORT_NAME)
        return report

    def _measured(self, source: onnx.ModelProto) -> Choice:
        for index, site in enumerate(self._sites):
            self._progress("timing layers", index, len(self._sites))
            self._time(site)
        self._progress("timing layers", len(self._sites), len(self._sites))
        if not self._timed:
            return Choice()
        layers, networks = list(self._timed.values()), Networks(source, self._stopwatch, self._block)
        smallest_gain, rounds = self._options.smallest_gain, self._options.rounds
        choice = choose_forms(layers, networks, rounds, self._progress, smallest_gain=smallest_gain)
        self._remarks += choice.remarks
        return choice

    def _time(self, site: Site) -> None:
        size = input_size(self._graph, site) if self._has_fixed_size() else None
        positions = 0 if size is None else gathered_positions(site, size, self._stopwatch.engine_options.batch)
        forms = (DENSE, *forms_of(site, self._block, positions, can_add=self._can_add))
        if len(forms) == 1 or size is None:
            self._obstacles.setdefault(site.name, _UNKNOWN_SIZE if size is None else _no_form(site))
            return
        small = surrounded(self._graph, site, size)
        models = {str(form): rewritten(small, {LAYER: form}) for form in forms}
        try:
            times, from_cache = self._stopwatch.compare(models)
        except ArtifactError as error:
            self._obstacles[site.name] = f"the runtime does not take it: {error}"
            return
        kind = self._stopwatch.key(models)
        self._timed[site.name] = TimedLayer(site=site, forms=forms, times=times, from_cache=from_cache, kind=kind)

    def _always(self, source: onnx.ModelProto) -> Choice:
        """Every layer that can be, in the form to expect most of; timed as a whole where the file's sizes are fixed."""
        forms = {site.name: found[-1] for site in self._sites if (found := forms_of(site, self._block, can_add=self._can_add))}
        if not forms:
            return Choice()
        network = Network(forms=forms, without_unread=True)
        reasons = dict.fromkeys(forms, "rewritten without timing, as configured")
        if not self._has_fixed_size():
            self._remarks.append("the network was not timed, as the file does not fix the height and width of its input")
            return Choice(network=network, reasons=reasons)
        models = {"sparse": source, "rewritten": rewritten(source, forms, unread_block=self._block)}
        times, _ = self._stopwatch.compare(models, self._progress)
        if times.speedups[1] < 1:
            self._remarks.append(f"the rewritten network is slower than the sparse one: {times.speedups[1]:.2f}x")
        return Choice(network=network, reasons=reasons, speedup=times.speedups[1], interval=times.intervals[1])

    def _has_fixed_size(self) -> bool:
        """Whether the network can be timed: the channels, height and width of its input are known."""
        return all(None not in shape[1:] for shape in self._graph.inputs.values())

    def _report(self, choice: Choice, written: Graph | None) -> RewriteReport:
        fewer = () if written is None else fewer_outputs(self._graph, written)
        status, engine_options = self._stopwatch.status, self._stopwatch.engine_options
        return RewriteReport(
            sparse_sha256=self._graph.sha256,
            rewritten_sha256=None if written is None else written.sha256,
            backend=self._stopwatch.backend.name,
            device=status.device.name if status.device is not None else "unknown",
            versions=status.versions,
            batch=engine_options.batch,
            threads=engine_options.threads,
            channel_block=self._block,
            layers=tuple(self._layer(site, choice, {found.node: found for found in fewer}) for site in self._sites),
            fewer_outputs=fewer,
            speedup=choice.speedup,
            interval=choice.interval,
            remarks=tuple(self._remarks),
        )

    def _layer(self, site: Site, choice: Choice, fewer: Mapping[str, FewerOutputs]) -> LayerRewrite:
        form = choice.network.forms.get(site.name, DENSE)
        timed = self._timed.get(site.name)
        index = timed.forms.index(form) if timed is not None else 0
        reason = self._obstacles.get(site.name) or choice.reasons.get(site.name) or "not rewritten, as configured"
        found = fewer.get(site.name)
        share = 1.0 if found is None else found.computed_channels / found.output_channels
        if found is not None:
            reason += f"; {found.output_channels - found.computed_channels} output channels are left out that nobody reads"
        return LayerRewrite(
            node=site.name,
            pattern=site.pattern,
            form=form.name,
            reason=reason,
            density=site.density,
            computed_density=form.computed_density * share,
            ideal=1 / site.density if site.density else 1.0,
            times=tuple(_timed_forms(timed)) if timed is not None else (),
            speedup=timed.times.speedups[index] if timed is not None else None,
            interval=timed.times.intervals[index] if timed is not None else None,
        )


def _no_form(site: Site) -> str:
    if site.n is None and site.layer.weight.dtype != np.float32:
        return f"rows are computed in float32, and its weights are {site.layer.weight.dtype}"
    if site.positions is not None and not site.positions.keep.any():
        return "none of its positions is kept"
    return "no form of it computes less"


def _timed_forms(timed: TimedLayer) -> Iterator[TimedForm]:
    for form, median_ms in zip(timed.forms, timed.times.median_ms, strict=True):
        yield TimedForm(form=form.name, variant=form.variant, median_ms=median_ms, from_cache=timed.from_cache)
