"""Whether an engine runs its file's layers in the file's precision, told from what the engine inspector says of each layer."""

import re
from collections.abc import Iterable

from masksparse_deploy.core.artifacts.engines import EngineLayer
from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.graph.model import Graph
from masksparse_deploy.graph.reader import weighted_layers

__all__ = ["check_precision", "expected_precisions", "ran_precision"]

# Searched in this order, as "BF16" holds "F16".
_WORDS = {
    "int8": re.compile(r"int8", re.IGNORECASE),
    "fp8": re.compile(r"fp8", re.IGNORECASE),
    "bf16": re.compile(r"bf16|bfloat16", re.IGNORECASE),
    "fp16": re.compile(r"fp16|float16|half", re.IGNORECASE),
    "fp32": re.compile(r"fp32|float32|float\b", re.IGNORECASE),
}
_FLOATS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Layers that carry data about for another one, whose nodes they may name too.
_CARRIERS = ("Reformat", "NoOp", "Constant")
_SHOWN = 3


def check_precision(graph: Graph, layers: tuple[EngineLayer, ...], *, binding: bool) -> tuple[str, ...]:
    """Compare each layer that has a weight with the node it comes from; returns what the user should know.

    Args:
        graph: the file.
        layers: the engine's.
        binding: whether the runtime must keep the file's types (strongly typed); otherwise it may choose a wider one.

    Raises:
        ArtifactError: types are binding, and no layer has that of the file.
    """
    expected = expected_precisions(graph)
    ran = {node: found for layer in layers if (found := ran_precision(layer)) for node in layer.onnx_nodes}
    compared = [node for node in expected if node in ran]
    wrong = [node for node in compared if ran[node] != expected[node]]
    findings = []
    if len(compared) < len(expected):
        unknown = [node for node in expected if node not in ran]
        findings.append(
            f"the precision of {len(unknown)} of {len(expected)} layers with weights is not told by the engine inspector "
            f"({_few(unknown)})"
        )
    if wrong:
        examples = _few(f"{node} in {ran[node]} instead of {expected[node]}" for node in wrong)
        found = f"{len(wrong)} of {len(compared)} layers with weights do not run in the file's precision: {examples}"
        if binding and len(wrong) == len(compared):
            raise ArtifactError(
                f"the engine was built in another precision than its file has: {found}; bake the file again and build it with "
                "the tensorrt backend of this package, which keeps types"
            )
        findings.append(found)
    return tuple(findings)


def expected_precisions(graph: Graph) -> dict[str, str]:
    """For each node of the file with a weight: "int8" where data and weight are quantized, else the weight's own precision."""
    dequantized = {name for node in graph.nodes if node.op == "DequantizeLinear" for name in node.outputs}
    return {
        layer.node.name: "int8"
        if layer.quantized is not None and layer.node.inputs[0] in dequantized
        else _FLOATS.get(layer.weight.dtype.name, layer.weight.dtype.name)
        for layer in weighted_layers(graph)
    }


def ran_precision(layer: EngineLayer) -> str:
    """What an engine's layer multiplies: "int8", "fp8", "bf16", "fp16", "tf32" or "fp32"; "" where nothing tells.

    Read from the format of its first input, else from the type of its weights, else from its tactic's name: TensorRT 8 names no
    format where shapes are dynamic. "tf32", which keeps 10 bits of the mantissa, shows in the tactic's name only.
    """
    if layer.layer_type in _CARRIERS:
        return ""
    for text in (*layer.inputs[:1], layer.weight_dtype):
        for name, pattern in _WORDS.items():
            if pattern.search(text):
                return "tf32" if name == "fp32" and "tf32" in layer.tactic.lower() else name
    operands = read_tactic(layer.tactic).operands
    return "tf32" if operands == "fp32" and "tf32" in layer.tactic.lower() else operands


def _few(texts: Iterable[str]) -> str:
    listed = list(texts)
    rest = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(listed[:_SHOWN]) + rest
