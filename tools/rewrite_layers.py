"""Where the time of a rewritten network goes, layer by layer: ONNX Runtime's own profile of the dense and the rewritten file.

ONNX Runtime names an operator of the optimised graph after the node or tensor that it comes from, and adds reorders between the
plain and its blocked layout, which carry no name of a layer: they belong to the layer whose gather they feed or follow.
"""

import json
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from masksparse_deploy.core.optional import require

__all__ = ["LayerTime", "profile_layers"]

_SUFFIX = "_kernel_time"
_MS_PER_US = 1e-3
_KINDS: Mapping[str, str] = {
    "Conv": "conv",
    "FusedConv": "conv",
    "Gather": "gather",
    "Slice": "gather",
    "AveragePool": "gather",
    "ReorderInput": "reorder",
    "ReorderOutput": "reorder",
    "Concat": "join",
}


@dataclass(frozen=True, kw_only=True)
class LayerTime:
    """Milliseconds of one layer within the network, by what they were spent on.

    Of every operator the shortest time of several inferences: the runtime's profile is wall time, and an operator that another
    process interrupts seems to take as long as that.

    Attributes:
        conv_ms: convolutions, with the sums and activations that are fused into them.
        gather_ms: selecting channels and positions.
        reorder_ms: changing between the plain and the blocked layout, before and after the gather.
        join_ms: putting parts together.
    """

    conv_ms: float = 0.0
    gather_ms: float = 0.0
    reorder_ms: float = 0.0
    join_ms: float = 0.0

    @property
    def total_ms(self) -> float:
        """All of it."""
        return self.conv_ms + self.gather_ms + self.reorder_ms + self.join_ms


def profile_layers(
    content: bytes, layers: Sequence[str], image: npt.NDArray[np.float32], *, threads: int, inferences: int
) -> dict[str, LayerTime]:
    """Run a network and add up the times of its operators by layer.

    Args:
        content: the ONNX file, whose nodes and tensors begin with the names of their layers.
        layers: names of layers.
        image: float32 (1, channels, height, width).
        threads: that ONNX Runtime may use.
        inferences: of which the shortest time of every operator is taken.
    """
    runtime = require("onnxruntime", needed_for="profiling layers")
    with tempfile.TemporaryDirectory(prefix="masksparse-") as folder:
        settings = runtime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.enable_profiling, settings.profile_file_prefix = True, str(Path(folder) / "times")
        settings.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        settings.log_severity_level = 4  # it would warn that the optimised file is for this machine only
        session = runtime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        for _ in range(inferences):
            session.run(None, {session.get_inputs()[0].name: image})
        events = json.loads(Path(session.end_profiling()).read_text())
        nodes = onnx.load(settings.optimized_model_filepath, load_external_data=False).graph.node
    times: dict[str, list[float]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            times[event["name"].removesuffix(_SUFFIX)].append(event["dur"] * _MS_PER_US)
    return _by_layer({name: min(values) for name, values in times.items()}, nodes, layers)


def _by_layer(times: Mapping[str, float], nodes: Iterable[onnx.NodeProto], layers: Sequence[str]) -> dict[str, LayerTime]:
    """Add up times by layer and kind; `times` by node name, `nodes` of the optimised graph."""
    nodes = list(nodes)
    readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
    producers = {output: node for node in nodes for output in node.output}
    for node in nodes:
        for name in node.input:
            readers[name].append(node)
    sums: dict[str, dict[str, float]] = {layer: defaultdict(float) for layer in layers}
    for node in nodes:
        kind = _KINDS.get(node.op_type)
        owners = _owners(node, readers, producers, layers) if kind else []
        for owner in owners:
            sums[owner][f"{kind}_ms"] += times.get(node.name, 0.0) / len(owners)
    return {layer: LayerTime(**entries) for layer, entries in sums.items()}


def _owners(
    node: onnx.NodeProto,
    readers: Mapping[str, list[onnx.NodeProto]],
    producers: Mapping[str, onnx.NodeProto],
    layers: Sequence[str],
) -> list[str]:
    """The layers that an operator works for: of a reorder, those whose gathers read it or whose gather it reads."""
    if node.op_type == "ReorderInput":
        return [layer for producer in [producers.get(node.input[0])] if producer for layer in _named(producer.name, layers)]
    if node.op_type == "ReorderOutput":
        found = [layer for reader in readers[node.output[0]] for layer in _named(reader.name, layers)]
        return list(dict.fromkeys(found))
    return _named(node.name, layers)


def _named(name: str, layers: Sequence[str]) -> list[str]:
    """The layer whose name a node's name begins with, as a list of one or none."""
    return [layer for layer in layers if name == layer or name.startswith((f"{layer}/", f"{layer}."))][:1]
