"""The times of an engine's layers, beside what is known about each layer."""

from collections.abc import Mapping

import numpy as np

from masksparse_deploy.core.artifacts.engines import EngineArtifact
from masksparse_deploy.core.artifacts.timing import EngineRole, LayerTime

__all__ = ["layer_times"]


def layer_times(role: EngineRole, engine: EngineArtifact, times_ms: Mapping[str, tuple[float, ...]]) -> tuple[LayerTime, ...]:
    """One row a timed layer, the slowest first.

    Args:
        role: which of the compared engines this is.
        engine: its metadata; layers that the runtime timed and the metadata do not have (copies between formats, in some
            versions) get neither nodes nor a tactic.
        times_ms: the engine's name of a layer -> its times.
    """
    known = {layer.name: layer for layer in engine.layers}
    medians = {name: float(np.median(times)) for name, times in times_ms.items() if times}
    total = sum(medians.values())
    rows = [
        LayerTime(
            engine=role,
            name=name,
            onnx_nodes=known[name].onnx_nodes if name in known else (),
            tactic=known[name].tactic if name in known else "",
            median_ms=median,
            share=median / total if total > 0 else 0.0,
        )
        for name, median in medians.items()
    ]
    return tuple(sorted(rows, key=lambda row: -row.median_ms))
