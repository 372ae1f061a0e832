"""What was really deployed: the chain of digests, and the weights read back from the plan."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.baking import BakeReport
from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.plans import read_plan
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import parse_graph, read_graph, weighted_layers
from masksparse_deploy.validate.biases import bias_step
from masksparse_deploy.validate.plan_layers import layer_in_plan, plan_layers

__all__ = ["check_weights", "read_plan_graph", "read_unconverted", "require_chain"]


def require_chain(
    dense: Graph,
    sparse: Graph,
    dense_engine: EngineArtifact,
    sparse_engine: EngineArtifact,
    certificate: Certificate,
    *,
    rewritten: Graph | None = None,
) -> None:
    """Check that engines and certificate are about these two ONNX files; the sparse engine about the rewritten one if given.

    Raises:
        ArtifactError: a recorded digest is another one; both are shown, with the stage to run again.
    """
    deployed, kind = (sparse, "sparse") if rewritten is None else (rewritten, "rewritten")
    recorded = (
        ("the dense engine was built from", dense_engine.source_sha256, "dense", dense, "build"),
        ("the sparse engine was built from", sparse_engine.source_sha256, kind, deployed, "build"),
        ("the certificate is about", certificate.dense_sha256, "dense", dense, "certify"),
        ("the certificate is about", certificate.sparse_sha256, "sparse", sparse, "certify"),
    )
    hint = ", or give rewritten.onnx and rewrite.json too if 'masksparse rewrite' made what it was built from"
    for statement, digest, name, graph, stage in recorded:
        if digest != graph.sha256:
            raise ArtifactError(
                f"{statement} another {name} ONNX file: recorded digest {digest}, the file's digest is {graph.sha256}; "
                f"run 'masksparse {stage}' again{hint if (name, stage) == ('sparse', 'build') else ''}"
            )


def read_unconverted(paths: tuple[Path, Path], baked: BakeReport | None) -> tuple[Graph, Graph]:
    """The dense and the sparse network before their conversion to a reduced precision.

    Raises:
        ArtifactError: a file is damaged, or not the one that the bake stage wrote with the others.
        UsageError: a file is missing.
    """
    dense, sparse = (read_graph(path) for path in paths)
    recorded = (None, None) if baked is None else (baked.dense_fp32_sha256, baked.sparse_fp32_sha256)
    for path, graph, digest in zip(paths, (dense, sparse), recorded, strict=True):
        if digest is not None and digest != graph.sha256:
            raise ArtifactError(
                f"{path} is another file than 'masksparse bake' wrote: recorded digest {digest}, the file's digest is "
                f"{graph.sha256}; run 'masksparse bake' again"
            )
    return dense, sparse


def read_plan_graph(engine: EngineArtifact, engine_path: Path) -> Graph | None:
    """The plan as a graph where the backend's plans are ONNX files, else None.

    Raises:
        ArtifactError: the plan is missing, damaged, or its digest is not the recorded one.
    """
    if engine.backend != "onnxruntime":
        return None
    _, plan = read_plan(engine_path, backend=engine.backend)
    return parse_graph(plan, name=engine.plan)


def check_weights(name: str, source: Graph, plan: Graph | None, backend: str) -> Check:
    """Whether the plan's layers multiply by and add the numbers of the file, which the bounds are about.

    Weights must be the same; of a layer that reads INT8 weights the bias may lie on the runtime's own grid (see `bias_step`).
    """
    if plan is None:
        return _unreadable(name, backend)
    layers, in_plan = weighted_layers(source), plan_layers(plan)
    faults = _faults({layer.node.name: _weight_fault(layer, source, in_plan) for layer in layers})
    passed = f"read back from the plan: weights and biases of all {len(layers)} layers are the file's"
    if any(layer.quantized and layer.bias is not None for layer in layers):
        passed += ", the biases of INT8 layers up to half a step of the INT32 grid that the runtime may put them on"
    return _judged(name, faults, passed)


def _weight_fault(layer: WeightedLayer, source: Graph, in_plan: tuple[WeightedLayer, ...]) -> str:
    """How the layer's constants differ between file and plan; empty if they don't."""
    found = layer_in_plan(layer, in_plan)
    if found is None:
        return f"its weight {layer.stored_name} is not in the plan"
    if found.stored_name != layer.stored_name and found.stored_name in source.constants:
        return f"it reads {found.stored_name} in the plan instead of {layer.stored_name}"
    if layer.bias is not None and found.bias is None:
        return "its bias is not in the plan"
    fault = _difference(layer.stored_name, layer.weight, found.weight, 0.0)
    if fault or layer.bias is None or found.bias is None:
        return fault
    name = layer.node.inputs[2]
    # A runtime rounds the biases of an INT8 layer to a grid of its own; its scale is a product of two, rounded to float32.
    step = bias_step(layer, source) if found.quantized else None
    allowed = 0.0 if step is None else step / 2 + 2.0**-22 * np.abs(layer.bias.astype(np.float64))
    return _difference(name, layer.bias, found.bias, allowed)


def _difference(
    name: str, expected: npt.NDArray[Any], found: npt.NDArray[Any], allowed: float | npt.NDArray[np.float64]
) -> str:
    if found.shape != expected.shape:
        return f"{name} is not in the plan with the shape {expected.shape}"
    # types may differ where a conversion was carried out beforehand, values may not
    ours, theirs = expected.astype(np.float64), found.astype(np.float64)
    # the negation counts NaN as different
    different = int((~(np.abs(ours - theirs) <= allowed)).sum())
    if not different:
        return ""
    return f"{different} of {found.size} values of {name} differ, by up to {float(np.abs(ours - theirs).max()):.3g}"


def _faults(found: dict[str, str]) -> list[str]:
    return [f"{node}: {fault}" for node, fault in found.items() if fault]


def _judged(name: str, faults: list[str], passed: str) -> Check:
    if faults:
        return _check(name, float(len(faults)), "fail", "; ".join(faults))
    return _check(name, 0.0, "pass", passed)


def _unreadable(name: str, backend: str) -> Check:
    detail = (
        f"the backend {backend} does not let weights be read back from a plan; the chain of digests shows which file it was "
        "built from, and the comparisons of outputs show what it computes"
    )
    return _check(name, None, "inconclusive", detail, decides=False)


def _check(name: str, measured: float | None, verdict: Verdict, detail: str, *, decides: bool = True) -> Check:
    return Check(
        name=name,
        measured=measured,
        bound=None,
        tolerance=0.0,
        unit="layers",
        verdict=verdict,
        detail=detail,
        decides=decides,
    )
