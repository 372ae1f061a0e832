"""Which kernels the engine computes its layers with: their arithmetic, and whether they are those of the deployed engine."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from masksparse_deploy.core.artifacts.document import Verdict
from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.validation import Check, LayerDeviation
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.validate.arithmetic import Kernel, kernel_of
from masksparse_deploy.validate.layers import LayerPair
from masksparse_deploy.validate.rounding_int8 import overflow

__all__ = ["check_kernels", "doubts", "layer_kernels"]


def layer_kernels(pairs: tuple[LayerPair, ...], engine: EngineArtifact) -> dict[str, Kernel]:
    """Node name -> the kernel that the engine uses there; its doubt includes what the layer itself leaves open."""
    tactics = {node: layer.tactic for layer in engine.layers for node in layer.onnx_nodes}
    tf32 = engine.options.get("tf32") is True
    kernels = {}
    for pair in pairs:
        kernel = kernel_of(tactics.get(pair.bound.node, ""), pair.sparse.precision, tf32=tf32)
        doubt = kernel.doubt or pair.sparse.obstacle or overflow(pair.sparse)
        kernels[pair.bound.node] = replace(kernel, doubt=doubt)
    return kernels


def check_kernels(
    deployed: EngineArtifact,
    exposed: EngineArtifact,
    pairs: tuple[LayerPair, ...],
    plans: tuple[Graph | None, Graph | None] = (None, None),
) -> Check:
    """Whether the engine that returns its layers computes them as the deployed one: kernels by name, constants by value.

    Args:
        deployed: the engine that is judged.
        exposed: one built anew from the same file, which returns its layers.
        pairs: the layers.
        plans: of the two engines, where they can be read back.
    """
    nodes = [pair.bound.node for pair in pairs]
    tactics = [{node: layer.tactic for layer in engine.layers for node in layer.onnx_nodes} for engine in (deployed, exposed)]
    others = [node for node in nodes if tactics[0].get(node) != tactics[1].get(node)]
    unnamed = [node for node in nodes if not tactics[0].get(node)]
    detail = f"all {len(nodes)} changed layers are compared in the kernels of the deployed engine, by their names in the plan"
    if others:
        detail = "compared in another kernel than the deployed one: " + "; ".join(
            f"{node} ({tactics[1].get(node) or 'no name'} instead of {tactics[0].get(node) or 'no name'})" for node in others
        )
    elif unnamed:
        detail = f"the engine names no kernel for {', '.join(unnamed)}"
    verdict: Verdict = "inconclusive" if others or unnamed else "pass"
    changed = _changed_constants(*plans)
    if changed:
        # another version of the runtime may prepare constants in another way
        verdict = "fail" if deployed.versions == exposed.versions else "inconclusive"
        detail = f"the deployed plan holds other numbers than one built anew from the same file: {', '.join(changed)}"
    return Check(
        name="kernels of the engine with exposed layers",
        measured=float(len(changed) if changed else len(others)),
        bound=None,
        tolerance=0.0,
        unit="constants" if changed else "layers",
        verdict=verdict,
        detail=detail,
        decides=False,
    )


def doubts(layers: tuple[LayerDeviation, ...], kernels: Mapping[str, Kernel]) -> dict[str, str]:
    """Node name -> why it is open what the kernel of an inconclusive layer should give."""
    reasons = {}
    for layer in layers:
        kernel = kernels[layer.node]
        if layer.verdict == "inconclusive":
            name = kernel.arithmetic.name if kernel.arithmetic is not None else ""
            reasons[layer.node] = kernel.doubt or f"its sums in {name} may be larger than the format holds"
    return reasons


def _changed_constants(deployed: Graph | None, exposed: Graph | None) -> list[str]:
    """Names of constants that both plans have with different values."""
    if deployed is None or exposed is None:
        return []
    both = deployed.constants.keys() & exposed.constants.keys()
    return sorted(name for name in both if not np.array_equal(deployed.constants[name], exposed.constants[name]))
