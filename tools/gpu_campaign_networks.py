"""Networks: ResNet-18 and ResNet-50 with random weights, dense against 2:4, timed, recorded and refitted."""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.bake.precision.floats import ConvertFloats
from masksparse_deploy.bake.precision.quantize import quantize
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import ProfileReport
from masksparse_deploy.core.config import EngineOptions, ProfileOptions
from masksparse_deploy.core.errors import ArtifactError, MachineError
from masksparse_deploy.core.files import make_folder, write_atomic
from masksparse_deploy.engine.plans import metadata_path, read_plan
from masksparse_deploy.engine.source import read_source
from masksparse_deploy.forecast.kinds import take_census
from masksparse_deploy.forecast.trial import cut_weights
from masksparse_deploy.graph.reader import parse_graph
from masksparse_deploy.profiling.builds import BUILDS, provide_builds
from masksparse_deploy.profiling.compare import profile_builds
from tools.gpu_campaign_record import Case, Machine
from tools.imagenet_networks import NETWORKS

__all__ = ["NAMES", "Pair", "network_cases", "pair_case", "recording_cases", "write_pair"]

NAMES = ("resnet18", "resnet50")
# Those that TensorRT's output is recorded of; the larger network has the same kinds of layers, and writes megabytes.
_RECORDED = "resnet18"
_BATCHES = (32, 128, 8, 1)
# The newest that TensorRT 8.6 reads; no operator of these networks changed since.
_OPSET, _IR_VERSION = 17, 8
_ROLES = ("dense", "sparse")

# (the dense file, the sparse file), written into a folder where they are not there yet
Pair = Callable[[Path], tuple[Path, Path]]


def network_cases(precisions: Iterable[str], names: Sequence[str] = NAMES) -> Iterator[Case]:
    """Three engines of several builds each, for every network, precision and batch."""
    for batch in _BATCHES:
        for name in names:
            for precision in precisions:
                title = f"{name} {precision}"
                yield pair_case(title, partial(write_pair, name, precision), batch=batch)


def pair_case(title: str, pair: Pair, *, batch: int) -> Case:
    """A dense file against its sparse twin."""
    folder = title.replace(" ", "-")
    return Case(
        name=f"{title} batch {batch}",
        piece="networks",
        files=pair,
        run=partial(_profile, pair, folder, batch),
    )


def recording_cases(precisions: Iterable[str]) -> Iterator[Case]:
    """What the inspector and the builder's log say of one network, for the tests."""
    for precision in precisions:
        pair = partial(write_pair, _RECORDED, precision)
        folder = f"{_RECORDED}-{precision}"
        yield Case(name=f"record {_RECORDED} {precision}", piece="golden", files=pair, run=partial(_record, pair, folder))


def write_pair(name: str, precision: str, folder: Path, *, seed: int = 0) -> tuple[Path, Path]:
    """Write dense.onnx and sparse.onnx of a network in a precision, with a dynamic batch; what is there already is kept.

    Scales of INT8 come from two random images: times do not depend on them.
    """
    paths = tuple(make_folder(folder) / f"{role}.onnx" for role in _ROLES)
    if not all(path.is_file() for path in paths):
        dense = _network(name, precision, seed)
        sparse, _ = cut_weights(dense, take_census(parse_graph(dense.SerializeToString(), name=name)))
        for path, model in zip(paths, (dense, sparse), strict=True):
            write_atomic(path, model.SerializeToString())
    return paths[0], paths[1]


def _network(name: str, precision: str, seed: int) -> onnx.ModelProto:
    model = NETWORKS[name](seed)
    model.opset_import[0].version, model.ir_version = _OPSET, _IR_VERSION
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del model.graph.value_info[:]  # of one image; inferred anew where they are needed
    if precision == "int8":
        image = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
        return quantize(model, np.random.default_rng(seed).standard_normal((2, *image), dtype=np.float32))
    lowered = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    ConvertFloats("fp16")(lowered)
    return ir.to_proto(lowered)


def _build(machine: Machine, paths: Sequence[Path], folder: Path, options: EngineOptions) -> tuple[Path, Path]:
    """The metadata of both engines; an engine of this file with these options that is there already is kept."""
    found = []
    for role, path in zip(_ROLES, paths, strict=True):
        metadata = metadata_path(folder, role)
        if not _is_built(metadata, path, machine):
            machine.check_time()
            machine.backend.build(path, folder, options, name=role)
        found.append(metadata)
    return found[0], found[1]


def _is_built(metadata: Path, source: Path, machine: Machine) -> bool:
    if not metadata.is_file():
        return False
    try:
        engine, _ = read_plan(metadata, backend=machine.backend.name)
    except ArtifactError:
        return False
    return engine.source_sha256 == read_source(source).graph.sha256 and engine.device == machine.status.device


def _profile(pair: Pair, title: str, batch: int, machine: Machine) -> dict[str, Any]:
    folder = machine.work / title
    paths = pair(folder)
    options = machine.engine.model_copy(update={"batch": batch})
    own = folder / f"batch-{batch}"
    dense, sparse = _build(machine, paths, own, options)
    # what is built already is kept, also for the next piece
    builds = provide_builds(dense, sparse, *paths, own / BUILDS, count=machine.builds, before_build=machine.check_time)
    machine.check_time()
    shape = read_source(paths[0]).input_shape
    images = np.random.default_rng(0).standard_normal((batch, *(length or 1 for length in shape[1:])), dtype=np.float32)
    profile, no_graph = ProfileOptions(rounds=machine.rounds, cuda_graph=True), ""
    try:
        report = profile_builds(builds, images, options, profile)
    except MachineError as error:  # as for kernels: what cannot be recorded as a graph is launched kernel by kernel
        no_graph = str(error)
        report = profile_builds(builds, images, options, profile.model_copy(update={"cuda_graph": False}))
    return {
        "batch": batch,
        "no_graph_because": no_graph,
        "sparse_kernels": EngineArtifact.read(sparse).sparse_kernels,
        "profile": _without_samples(report),
        "outcome": _speedup_text(report) + (f"; launched without graphs: {no_graph}" if no_graph else ""),
    }


def _without_samples(report: ProfileReport) -> dict[str, Any]:
    """The report but for single times, of which there are thousands."""
    content: dict[str, Any] = json.loads(report.to_bytes())

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: strip(entry) for key, entry in value.items() if key != "samples_ms"}
        return [strip(entry) for entry in value] if isinstance(value, list) else value

    return {key: strip(value) for key, value in content.items()}


def _speedup_text(report: ProfileReport) -> str:
    interval = report.speedup.interval
    text = (
        f"dense {report.dense.median_ms:.4g} ms, sparse {report.sparse.median_ms:.4g} ms, {report.speedup.ratio:.3f}x "
        f"[{interval.low:.3f}, {interval.high:.3f}] at {100 * interval.confidence:g} %"
    )
    return text + (f"; INVALID: {'; '.join(report.invalid_because)}" if report.invalid_because else "")


def _record(pair: Pair, title: str, machine: Machine) -> dict[str, Any]:
    folder = machine.work / title
    paths = pair(folder)
    own = folder / f"batch-{_BATCHES[0]}"
    _build(machine, paths, own, machine.engine.model_copy(update={"batch": _BATCHES[0]}))
    version = machine.status.versions.get("tensorrt", "unknown")
    written = []
    for role in _ROLES:
        for kind, suffix in (("inspector", "inspector.json"), ("build-log", "build.log")):
            source = own / f"{role}.{suffix}"
            if source.is_file():
                target = machine.golden / f"{kind}-{version}-{title}-{role}.{suffix.rpartition('.')[2]}"
                write_atomic(target, source.read_bytes())
                written.append(target.name)
    if not any(name.startswith("inspector") for name in written):
        raise ArtifactError(f"{own} holds no inspector's JSON: only TensorRT's engines have one")
    return {"written": written, "outcome": f"{len(written)} files"}
