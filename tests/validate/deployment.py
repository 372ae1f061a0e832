"""A small deployed pair of networks in a folder, with everything that the validate stage reads."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import save_file

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.artifacts.certificate import DATA_FREE, HYBRID, LAYERWISE, Certificate, Claim, LayerBound
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check, ValidationReport
from masksparse_deploy.core.config import EngineOptions, Gates
from masksparse_deploy.core.files import sha256_file
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.engine.onnxruntime_backend import OnnxRuntimeBackend
from masksparse_deploy.graph.evaluate import evaluate
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import read_graph, weighted_layers
from masksparse_deploy.validate.run import validate
from tests.models.make_onnx import MASKED_LAYERS, PATTERN, residual_pair

OPTIONS = EngineOptions(batch=16, threads=1)
# Random weights lose far more to 2:4 than trained ones: gates wide enough for an untrained network.
WIDE_GATES = Gates(accuracy_drop_points=100.0, flip_rate=1.0)


@dataclass(frozen=True, eq=False, kw_only=True)
class Deployment:
    folder: Path
    samples: Samples
    certificate: Certificate

    def validate(self, **changes: Any) -> ValidationReport:
        arguments: dict[str, Any] = {
            "dense_engine": self.folder / "dense.engine.json",
            "sparse_engine": self.folder / "sparse.engine.json",
            "dense_onnx": self.folder / "dense.onnx",
            "sparse_onnx": self.folder / "sparse.onnx",
            "certificate": self.certificate,
            "probe": self.folder / "probe.safetensors",
            "samples": self.samples,
            "gates": WIDE_GATES,
            "engine_options": OPTIONS,
            "out": self.folder,
        }
        return validate(**{**arguments, **changes})

    def change_plan(self, change: Callable[[onnx.ModelProto], None], name: str = "sparse") -> None:
        """Change a plan and record its new digest, as a faulty build would."""
        metadata = self.folder / f"{name}.engine.json"
        artifact = EngineArtifact.read(metadata)
        plan = self.folder / artifact.plan
        model = onnx.load(plan)
        change(model)
        onnx.save(model, plan)
        artifact.model_copy(update={"plan_sha256": sha256_file(plan)}).write(metadata)


def deploy(folder: Path, count: int = 48, pattern: Pattern = PATTERN) -> Deployment:
    dense, sparse = residual_pair(pattern=pattern)
    for name, model in (("dense", dense), ("sparse", sparse)):
        onnx.save(model, folder / f"{name}.onnx")
        OnnxRuntimeBackend().build(folder / f"{name}.onnx", folder, OPTIONS, name=name)
    graphs = read_graph(folder / "dense.onnx"), read_graph(folder / "sparse.onnx")
    images = np.random.default_rng(1).standard_normal((count, 3, 8, 8), dtype=np.float32)
    logits = [evaluate(graph, images)["logits"] for graph in graphs]
    # the float64 reference stands in for PyTorch, so that these tests run without it
    probe = {"images": images[:8], "dense_outputs": logits[0][:8], "sparse_outputs": logits[1][:8]}
    save_file({name: array.astype(np.float32) for name, array in probe.items()}, folder / "probe.safetensors")
    samples = Samples(images, logits[0].argmax(1))
    distance = float(np.linalg.norm(logits[0] - logits[1], axis=1).max())
    return Deployment(folder=folder, samples=samples, certificate=make_certificate(*graphs, samples, distance))


def make_certificate(dense: Graph, sparse: Graph, samples: Samples, distance: float) -> Certificate:
    """Layer bounds by sqrt(kernel_h kernel_w) times the Frobenius norm, and end-to-end claims from the known distance."""
    twins = {layer.node.name: layer for layer in weighted_layers(dense)}
    layers = []
    for layer in weighted_layers(sparse):
        if layer.node.name not in MASKED_LAYERS:
            continue
        norms = [
            float(np.sqrt(layer.kernel_positions) * np.linalg.norm(kernel.astype(np.float64)))
            for kernel in (twins[layer.node.name].weight - layer.weight, twins[layer.node.name].weight, layer.weight)
        ]
        positions = dense.shapes[layer.node.outputs[0]][2:]
        layers.append(
            LayerBound(
                layer=layer.node.name,
                node=layer.node.name,
                initializer=layer.weight_name,
                removed_norm=norms[0],
                difference_norm=norms[0],
                dense_norm=norms[1],
                sparse_norm=norms[2],
                bias_difference=0.0,
                output_positions=int(np.prod([length or 1 for length in positions])),
                method="frobenius",
            )
        )
    return Certificate.sealed(
        dense_sha256=dense.sha256,
        sparse_sha256=sparse.sha256,
        data_sha256=samples.digest,
        grid=32,
        layers=tuple(layers),
        claims=(
            make_claim(LAYERWISE, None, "useful"),
            make_claim(DATA_FREE, 1e6 * distance, "vacuous"),
            make_claim(HYBRID, 2 * distance, "useful"),
        ),
        smallest=HYBRID,
        unsupported=(),
    )


def make_claim(name: str, bound: float | None, status: str) -> Claim:
    return Claim(
        name=name,
        statement=f"{name}.",
        bound=bound,
        unit="l2",
        method="made for a test",
        assumptions=(),
        status=status,
        detail="made for a test",
        measured=None,
        tightness=None,
        certified_count=None,
        sample_count=None,
    )


def named(report: ValidationReport, name: str) -> Check:
    """The one check called `name`."""
    (check,) = [check for check in report.checks if check.name == name]
    return check


def failed(report: ValidationReport) -> set[str]:
    """Names of the failed checks."""
    return {check.name for check in report.checks if check.verdict == "fail"}


def set_constant(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    """Replace an initializer by `change` of it."""
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == name]
    array = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(array, name))
