"""What was really deployed: the chain of digests, and the weights read back from the plan."""

from pathlib import Path

import numpy as np

from masksparse_deploy.core.artifacts.certificate import Certificate
from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.engine.plans import read_plan
from masksparse_deploy.graph.annotations import GROUP_AXIS, PATTERN
from masksparse_deploy.graph.model import Graph, WeightedLayer
from masksparse_deploy.graph.reader import parse_graph, weighted_layers

__all__ = ["check_conformity", "check_weights", "read_plan_graph", "require_chain"]


def require_chain(
    dense: Graph, sparse: Graph, dense_engine: EngineArtifact, sparse_engine: EngineArtifact, certificate: Certificate
) -> None:
    """Check that engines and certificate are about these two ONNX files.

    Raises:
        ArtifactError: a recorded digest is another one; both are shown, with the stage to run again.
    """
    recorded = (
        ("the dense engine was built from", dense_engine.source_sha256, "dense", dense, "build"),
        ("the sparse engine was built from", sparse_engine.source_sha256, "sparse", sparse, "build"),
        ("the certificate is about", certificate.dense_sha256, "dense", dense, "certify"),
        ("the certificate is about", certificate.sparse_sha256, "sparse", sparse, "certify"),
    )
    for statement, digest, name, graph, stage in recorded:
        if digest != graph.sha256:
            raise ArtifactError(
                f"{statement} another {name} ONNX file: recorded digest {digest}, the file's digest is {graph.sha256}; "
                f"run 'masksparse {stage}' again"
            )


def read_plan_graph(engine: EngineArtifact, engine_path: Path) -> Graph | None:
    """The plan as a graph where the backend's plans are ONNX files, else None.

    Raises:
        ArtifactError: the plan is missing, damaged, or its digest is not the recorded one.
    """
    if engine.backend != "onnxruntime":
        return None
    _, plan = read_plan(engine_path, backend=engine.backend)
    return parse_graph(plan, name=engine.plan)


def check_conformity(sparse: Graph, plan: Graph | None, backend: str) -> Check:
    """Whether every layer that the sparse file annotates still keeps at most N of M weights in the plan."""
    name = "pattern of the sparse plan"
    if plan is None:
        return _unreadable(name, backend)
    layers = [layer for layer in weighted_layers(sparse) if PATTERN in layer.node.metadata]
    faults = _faults({layer.node.name: _pattern_fault(layer, plan) for layer in layers})
    if not layers:
        return _check(name, None, "inconclusive", "the sparse ONNX file marks no layer as masked, so nothing could conform")
    return _judged(name, faults, f"read back from the plan: all {len(layers)} masked layers keep their pattern")


def check_weights(name: str, source: Graph, plan: Graph | None, backend: str) -> Check:
    """Whether weights and biases of the plan are bit for bit those of the file, which the bounds are about."""
    if plan is None:
        return _unreadable(name, backend)
    layers = weighted_layers(source)
    faults = _faults({layer.node.name: _weight_fault(layer, source, plan) for layer in layers})
    return _judged(name, faults, f"read back from the plan: weights and biases of all {len(layers)} layers are the file's")


def _pattern_fault(layer: WeightedLayer, plan: Graph) -> str:
    """What is wrong with the layer's pattern in the plan; empty if nothing is."""
    weight = plan.constants.get(layer.weight_name)
    if weight is None or weight.shape != layer.weight.shape:
        return f"its weight {layer.weight_name} is not in the plan with the shape {layer.weight.shape}"
    pattern = NMPattern.parse(layer.node.metadata[PATTERN])
    group_axis = int(layer.node.metadata.get(GROUP_AXIS, layer.group_axis))
    broken = pattern.count_violations(weight != 0, group_axis=group_axis)
    return f"{broken} of {weight.size // pattern.m} groups keep more than {pattern.n} of {pattern.m} weights" if broken else ""


def _weight_fault(layer: WeightedLayer, source: Graph, plan: Graph) -> str:
    """How the layer's constants differ between file and plan; empty if they don't."""
    # fusing keeps the names of nodes or invents new ones; where it keeps them, the node must read the same constants
    for node in plan.nodes:
        if node.name == layer.node.name and layer.weight_name not in node.inputs:
            return f"it reads {', '.join(node.inputs[1:])} in the plan instead of {layer.weight_name}"
    for name in layer.node.inputs[1:]:
        if name not in source.constants:
            continue
        expected, found = source.constants[name], plan.constants.get(name)
        if found is None or found.shape != expected.shape or found.dtype != expected.dtype:
            return f"{name} is not in the plan as {expected.dtype} {expected.shape}"
        different = int((found != expected).sum())
        if different:
            largest = float(np.abs(found.astype(np.float64) - expected.astype(np.float64)).max())
            return f"{different} of {found.size} values of {name} differ, by up to {largest:.3g}"
    return ""


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
