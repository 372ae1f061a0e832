"""Kernels: one convolution a case, the same 2:4 weights with sparse tactics forbidden and allowed."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from masksparse_deploy.core.artifacts.forecast import ConvolutionKind
from masksparse_deploy.core.config import ForecastOptions
from masksparse_deploy.core.files import make_folder, write_atomic
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.forecast.estimate import measured_speedup
from masksparse_deploy.forecast.layer_model import LAYER, layer_model
from masksparse_deploy.forecast.pairs import ALLOWED, PairTimer
from masksparse_deploy.profiling.known_times import TimeStore
from tools.gpu_campaign_listening import ListeningBackend, builder_times
from tools.gpu_campaign_record import Case, Machine

__all__ = ["PIECE", "first_kernel_cases", "kernel_cases", "kernel_shapes"]

PIECE = "kernels"
CACHE_NAME = "kernel_times.json"
_BATCHES = (64, 8, 1, 128, 32)
_SIZES = (14, 28, 7, 56)
# Those from which most is learned: layers of the residual networks, and wider ones, where tensor cores are busy. The widest
# and the narrowest come early: few of them are timed within the first minutes.
_FIRST = ((512, 14), (1024, 14), (64, 56), (256, 28), (128, 28), (512, 28), (256, 14), (512, 7))
# Shapes that answer whether there is a sparse tactic, and whether it wins: three widths, 3x3 and 1x1.
_TELLING_COUNT = 6
_SQUARE = (64, 128, 256, 512, 1024)
_POINTWISE = ((64, 256), (256, 64), (128, 512), (512, 128), (256, 1024), (1024, 256), (512, 1024), (1024, 512))

# (kernel, input channels, output channels, height and width, batch)
Shape = tuple[int, int, int, int, int]


def kernel_shapes() -> tuple[Shape, ...]:
    """All shapes once, those from which most is learned first."""
    return tuple(dict.fromkeys((*_first(), *_all())))


def first_kernel_cases(precisions: Iterable[str]) -> Iterator[Case]:
    """The few to begin a campaign with, which `kernel_cases` has too."""
    names = tuple(precisions)
    yield from islice(kernel_cases(names), _TELLING_COUNT * len(names))


def kernel_cases(precisions: Iterable[str]) -> Iterator[Case]:
    """A case for every shape and precision."""
    names = tuple(precisions)
    for kernel, in_channels, out_channels, size, batch in kernel_shapes():
        for precision in names:
            kind = ConvolutionKind(
                kernel=(kernel, kernel),
                strides=(1, 1),
                dilations=(1, 1),
                pads=(kernel // 2,) * 4,
                in_channels=in_channels,
                out_channels=out_channels,
                height=size,
                width=size,
                precision=precision,
            )
            yield Case(
                name=f"{precision} {kernel}x{kernel} {in_channels} to {out_channels} channels {size}x{size} batch {batch}",
                piece=PIECE,
                files=partial(_files, kind, batch),
                run=partial(_run, kind, batch),
            )


def _first() -> Iterator[Shape]:
    for batch in _BATCHES[:3]:
        for channels, size in _FIRST:
            for kernel in (3, 1):
                yield kernel, channels, channels, size, batch
        yield 1, 256, 1024, 14, batch


def _all() -> Iterator[Shape]:
    for batch in _BATCHES:
        for size in _SIZES:
            for channels in _SQUARE:
                yield 3, channels, channels, size, batch
                yield 1, channels, channels, size, batch
            for pair in _POINTWISE:
                yield 1, *pair, size, batch


def _files(kind: ConvolutionKind, batch: int, folder: Path) -> Sequence[Path]:
    path = make_folder(folder) / "kernel.onnx"
    write_atomic(path, layer_model(kind, batch).SerializeToString())
    return (path,)


def _run(kind: ConvolutionKind, batch: int, machine: Machine) -> dict[str, Any]:
    options = ForecastOptions(rounds=machine.rounds)
    backend = ListeningBackend(machine.backend)
    timer = PairTimer(
        backend=backend,
        engine_options=machine.engine.model_copy(update={"batch": batch}),
        options=options,
        store=TimeStore(make_folder(machine.work) / CACHE_NAME),
        status=machine.status,
    )
    model: onnx.ModelProto = layer_model(kind, batch)
    times = timer.compare(model, model, layer=LAYER)
    speedup = measured_speedup(times.dense_ms, times.sparse_ms, options.confidence)
    dense_ms, sparse_ms = (float(np.median(values)) for values in (times.dense_ms, times.sparse_ms))
    picked = {True: "sparse", False: "dense kept", None: "tactic not told"}[times.picked]
    return {
        "kind": kind.model_dump(mode="json"),
        "batch": batch,
        "dense_ms": dense_ms,
        "sparse_ms": sparse_ms,
        "speedup": speedup.model_dump(mode="json"),
        "dense_tactic": times.dense_tactic,
        "sparse_tactic": times.sparse_tactic,
        "picked": times.picked,
        "builder": builder_times(backend.logs.get(ALLOWED), LAYER),
        "sums": [read_tactic(tactic).sums for tactic in (times.dense_tactic, times.sparse_tactic)],
        "outcome": f"{dense_ms:.4f} ms, allowed {sparse_ms:.4f} ms, {speedup.ratio:.3f}x, {picked}",
    }
