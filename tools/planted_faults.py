"""Which planted faults does `masksparse validate` find, by which check, and which does it miss?

    masksparse deploy samples/digits/deploy.yaml --out out/fp32   # and fp16.yaml, int8.yaml
    python -m tools.planted_faults samples/digits/deploy.yaml --out out/fp32

Each fault of tools/faults.py is planted into a copy of the deployed pair, and the whole stage is run on it. Three places:
"runtime": every engine of the sparse file has the fault, as if the runtime computed something else than the file says;
"plan": the deployed plan alone has it, with digests that fit; "file": the ONNX file itself has it, bake report, engines and
certificate are about that file, as after a faulty export; "digests": the ONNX file was changed after all else was made.
"""

import argparse
import dataclasses
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import onnx

from masksparse_deploy.certify.run import certify
from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import END_TO_END, Certificate
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check, ValidationReport
from masksparse_deploy.core.config import CertifyOptions, EngineOptions, Gates
from masksparse_deploy.core.errors import MasksparseError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.annotations import PATTERN
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from masksparse_deploy.pipeline.config_file import read_config
from masksparse_deploy.pipeline.job import Job
from masksparse_deploy.validate.run import validate
from tools.faults import FAULTS, Fault, Site, one_weight

__all__ = ["COLUMNS", "Case", "Finding", "find", "main", "smallest", "table"]

# Column -> the checks whose failure it shows; those of the sparse engine that a fault in it can move.
COLUMNS = {
    "pattern": ("pattern of the sparse plan",),
    "weights": ("weights of the sparse plan",),
    "constants": ("kernels of the engine with exposed layers",),
    "rebuilt": ("deployed engine against the one with exposed layers",),
    "float64": ("sparse engine against float64",),
    "PyTorch": ("sparse engine against PyTorch",),
    "layers": ("layers outside their bounds",),
    "end to end": END_TO_END,
    "gates": ("accuracy drop", "changed predictions"),
}
PLACES = ("runtime", "plan", "file", "digests")
_FINEST = 24


@dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """A deployed pair: dense.onnx, sparse.onnx and their engines in `folder`, and what validate needs besides."""

    folder: Path
    samples: Samples
    certificate: Certificate
    gates: Gates
    engine: EngineOptions
    certify: CertifyOptions = field(default_factory=CertifyOptions)

    @property
    def precision(self) -> str:
        """Of the sparse engine."""
        return "int8" if "int8" in (found := EngineArtifact.read(self.folder / "sparse.engine.json").precision) else found

    def site(self) -> Site:
        """The places for faults, the same for every fault."""
        graph = read_graph(self.folder / "sparse.onnx")
        layers = {layer.node.name: layer for layer in weighted_layers(graph)}
        masked = tuple(name for name, layer in layers.items() if PATTERN in layer.node.metadata)
        bounded = {bound.node for bound in self.certificate.layers}
        model = onnx.load(self.folder / "sparse.onnx")
        layer, other = next(
            (one, two)
            for one in masked
            for two in masked
            if one != two and layers[one].weight.shape == layers[two].weight.shape and _leads_to_addition(model, one)
        )
        output = layers[layer].node.outputs[0]
        return Site(
            model=model,
            dense=onnx.load(self.folder / "dense.onnx"),
            layer=layer,
            other=other,
            masked=masked,
            unmasked=next(name for name in layers if name not in bounded),
            largest=float(np.abs(evaluate(graph, self.samples.images, [output])[output]).max()),
        )


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What validate said of one fault: the report, or why it was refused; `layers` are those it was planted in."""

    fault: str
    place: str
    layers: tuple[str, ...]
    report: ValidationReport | None
    refusal: str = ""

    @property
    def found_by(self) -> tuple[str, ...]:
        """The columns with a check that failed."""
        if self.report is None:
            return ("refused",)
        failed = {check.name for check in self.report.checks if check.verdict == "fail"}
        return tuple(column for column, names in COLUMNS.items() if failed & set(names))

    @property
    def named(self) -> tuple[str, ...]:
        """The layers outside their bounds, and those whose constants in the plan are others."""
        if self.report is None:
            return ()
        (weights,) = [check for check in self.report.checks if check.name in COLUMNS["weights"]]
        others = [fault.split(": ")[0] for fault in weights.detail.split("; ")] if weights.verdict == "fail" else []
        outside = [layer.node for layer in self.report.layers if layer.verdict == "fail"]
        return tuple(dict.fromkeys([*outside, *others]))

    def cell(self, column: str) -> str:
        """What one check found: bold if it failed, with how far beyond what is allowed."""
        if self.report is None:
            return ""
        checks = [check for check in self.report.checks if check.name in COLUMNS[column]]
        if column == "layers":
            return _outside(self.report)
        cells = [_cell(check) for check in checks if check.verdict == "fail"] or [_cell(check) for check in checks]
        return cells[-1] if cells else ""


class _FaultyRuntime:
    """A backend that builds every engine from a changed model, and records the digest of the sound one."""

    def __init__(self, changed: bytes) -> None:
        self._changed = changed
        self._backend = OnnxRuntimeBackend()

    def build(self, onnx_path: Path, folder: Path, options: EngineOptions, *, name: str, **rest: Any) -> EngineArtifact:
        """As the real one, of another file."""
        with tempfile.TemporaryDirectory() as other:
            changed = Path(other) / "changed.onnx"
            changed.write_bytes(self._changed)
            artifact = self._backend.build(changed, folder, options, name=name, **rest)
        artifact = artifact.model_copy(update={"source_sha256": read_graph(onnx_path).sha256})
        artifact.write(folder / f"{name}.engine.json")
        return artifact

    def open(self, metadata_path: Path, *, threads: int = 0) -> Any:
        """As the real one."""
        return self._backend.open(metadata_path, threads=threads)


def find(case: Case, fault: Fault, place: str, folder: Path) -> Finding | None:
    """Plant a fault into a copy of the pair in `folder`, an empty one, and validate it; None if it changes nothing there."""
    site = case.site()
    sound = site.model.SerializeToString(deterministic=True)
    fault.plant(site)
    changed = site.model.SerializeToString(deterministic=True)
    if changed == sound:
        return None
    layers: list[str] = []
    for name in fault.layers:
        found = getattr(site, name)
        layers += [found] if isinstance(found, str) else found
    for path in case.folder.iterdir():
        if path.is_file():
            shutil.copy(path, folder)
    backend = _FaultyRuntime(changed)
    runtime: AbstractContextManager[Any] = nullcontext()
    if place == "digests":
        (folder / "sparse.onnx").write_bytes(changed)
    elif place == "file":
        _build_faulty_files(case, fault, changed, folder)
    else:
        backend.build(folder / "sparse.onnx", folder, case.engine, name="sparse")
    if place == "runtime":
        runtime = patch("masksparse_deploy.validate.run.get_backend", return_value=backend)
    report, refusal = None, ""
    try:
        certificate = case.certificate
        if place == "file":
            certificate = certify(folder / "dense.onnx", folder / "sparse.onnx", case.samples, case.certify)
        with runtime:
            report = _validate(case, certificate, folder)
    except MasksparseError as error:
        refusal = str(error).replace(f"{folder}/", "")
    return Finding(fault=fault.name, place=place, layers=tuple(layers), report=report, refusal=refusal)


def _build_faulty_files(case: Case, fault: Fault, sparse: bytes, folder: Path) -> None:
    """Write the sparse file, and the dense one if the fault is in the graph of both, with engines and bake report."""
    (folder / "sparse.onnx").write_bytes(sparse)
    if fault.in_graph:
        site = case.site()
        dense = dataclasses.replace(site, model=site.dense)
        fault.plant(dense)
        (folder / "dense.onnx").write_bytes(dense.model.SerializeToString(deterministic=True))
    for name in ("dense", "sparse"):
        OnnxRuntimeBackend().build(folder / f"{name}.onnx", folder, case.engine, name=name)
    if (folder / "bake.json").exists():
        digests = {f"{name}_sha256": read_graph(folder / f"{name}.onnx").sha256 for name in ("dense", "sparse")}
        BakeReport.read(folder / "bake.json").model_copy(update=digests).write(folder / "bake.json")


def _validate(case: Case, certificate: Certificate, folder: Path) -> ValidationReport:
    probe, baked = folder / "probe.safetensors", folder / "bake.json"
    return validate(
        dense_engine=folder / "dense.engine.json",
        sparse_engine=folder / "sparse.engine.json",
        dense_onnx=folder / "dense.onnx",
        sparse_onnx=folder / "sparse.onnx",
        certificate=certificate,
        probe=probe if probe.exists() else None,
        baked=BakeReport.read(baked) if baked.exists() else None,
        samples=case.samples,
        gates=case.gates,
        engine_options=case.engine,
        out=folder,
    )


def smallest(case: Case) -> dict[str, int]:
    """Column -> the largest k at which a weight that the runtime makes smaller by 2^-k of itself is found; absent if never."""
    found: dict[str, int] = {}
    for k in range(1, _FINEST + 1):
        fault = Fault(name="", plant=lambda site, k=k: one_weight(site, 1 - 2.0**-k))  # type: ignore[misc]
        with tempfile.TemporaryDirectory() as folder:
            finding = find(case, fault, "runtime", Path(folder))
        if finding is not None:
            found |= dict.fromkeys(finding.found_by, k)
    return found


def table(findings: Sequence[Finding]) -> Iterator[str]:
    """The lines of a Markdown table, faults by place."""
    columns = list(COLUMNS)
    yield "| fault | in | verdict | named | " + " | ".join(columns) + " |"
    yield "|---" * (len(columns) + 4) + "|"
    for finding in findings:
        if finding.report is None:
            yield f"| {finding.fault} | {finding.place} | **refused**: {finding.refusal} | " + "| " * (len(columns) + 1)
            continue
        cells = " | ".join(finding.cell(column) for column in columns)
        right = "nothing" if not finding.named else "its layers" if set(finding.named) == set(finding.layers) else _few(finding)
        verdict = finding.report.verdict if finding.found_by else f"**missed** ({finding.report.verdict})"
        yield f"| {finding.fault} | {finding.place} | {verdict} | {right} | {cells} |"


def _outside(report: ValidationReport) -> str:
    """How many layers are outside their bounds, by how much, and whether the bound covers their kernels at all."""
    largest = max((layer.rounding_ratio for layer in report.layers), default=0.0)
    failed = sum(layer.verdict == "fail" for layer in report.layers)
    unsure = sum(layer.verdict == "inconclusive" for layer in report.layers)
    if failed:
        return f"**{failed}, {largest:.2g}x**"
    return f"open {unsure}, {largest:.2g}x" if unsure else f"{largest:.2g}x"


def _few(finding: Finding) -> str:
    more = len(set(finding.named) - set(finding.layers))
    fewer = len(set(finding.layers) - set(finding.named))
    return (
        f"{len(finding.layers) - fewer} of its {len(finding.layers)}, {more} others"
        if finding.layers
        else "the layer next to it"
    )


def _cell(check: Check) -> str:
    allowed = check.bound if check.bound is not None else check.tolerance
    if check.measured is None:
        text = "open" if check.verdict == "inconclusive" else str(check.verdict)
    elif allowed:
        text = f"{check.measured / allowed:.2g}x"
    elif check.verdict == "inconclusive":
        text = "open"
    else:
        text = f"{check.measured:.3g}"
    return f"**{text}**" if check.verdict == "fail" else text


def _leads_to_addition(model: onnx.ModelProto, name: str) -> bool:
    """Whether what comes out of a layer is added to something before it goes through an activation."""
    reached = {next(node for node in model.graph.node if node.name == name).output[0]}
    for node in model.graph.node:
        if reached & set(node.input):
            if node.op_type == "Add":
                return True
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                reached |= set(node.output)
    return False


def read_case(config: Path, out: Path) -> Case:
    """The pair that `masksparse deploy` left in `out`."""
    job = Job(config=read_config(config), folder=config.parent, out=out, command="", config_text="")
    return Case(
        folder=out,
        samples=job.test,
        certificate=Certificate.read(out / "certificate.json"),
        gates=job.config.gates,
        engine=job.config.engine,
        certify=job.config.certify,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, plant every fault everywhere, print the tables."""
    parser = argparse.ArgumentParser(description="Planted faults, found and missed.")
    parser.add_argument("config", type=Path, help="the deploy.yaml of a run that has ended")
    parser.add_argument("--out", type=Path, required=True, help="its output folder")
    parser.add_argument("--only", default="", help="faults with this text in their names")
    given = parser.parse_args(arguments)
    case = read_case(given.config, given.out)
    site, findings = case.site(), []
    for place in PLACES:
        for fault in FAULTS:
            # one is enough for the digests, which do not look at what was changed
            if (
                given.only not in fault.name
                or case.precision not in fault.precisions
                or (place == "digests" and fault is not FAULTS[0])
            ):
                continue
            print(f"{place}: {fault.name}", file=sys.stderr, flush=True)
            with tempfile.TemporaryDirectory() as folder:
                finding = find(case, fault, place, Path(folder))
            if finding is None:
                print(f"{fault.name} changes nothing here", file=sys.stderr)
            else:
                findings.append(finding)
    print(f"{case.precision.upper()}, {len(case.samples)} samples; planted in {site.layer} (other: {site.other})\n")
    print("\n".join(table(findings)))
    found = sum(bool(finding.found_by) for finding in findings)
    print(
        f"\n{found} of {len(findings)} found.\n\nOne weight of {site.layer} smaller by 2^-k of itself is found up to k =",
        end=" ",
    )
    print(", ".join(f"{k} ({column})" for column, k in smallest(case).items()))


if __name__ == "__main__":
    main()
