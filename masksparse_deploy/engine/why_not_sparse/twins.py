"""The dense twin of a sparse tactic, the times of both, and whether the sparse one rounds more."""

from collections.abc import Sequence
from dataclasses import dataclass

from masksparse_deploy.core.artifacts.engines import EngineArtifact, EngineLayer
from masksparse_deploy.core.artifacts.sparse_tactics import TacticTimes
from masksparse_deploy.core.artifacts.timing import EngineRole, LayerTime
from masksparse_deploy.engine.tactic_names import read_tactic
from masksparse_deploy.engine.why_not_sparse.matching import carriers

__all__ = ["Twin", "find_twin"]


@dataclass(frozen=True, kw_only=True)
class Twin:
    """What is known beside the engine itself.

    Attributes:
        tactic: the dense twin's; "" where there is none or it is not told.
        median_ms: of the layer in the engine.
        share: of all layers' times.
        times: both times, as far as they were measured.
    """

    tactic: str
    median_ms: float | None
    share: float | None
    times: tuple[TacticTimes, ...]

    def is_finer_than(self, tactic: str) -> bool:
        """Whether it adds up in FP32 where `tactic` does in FP16."""
        return read_tactic(tactic).sums == "fp16" and read_tactic(self.tactic).sums == "fp32"


def find_twin(
    names: frozenset[str],
    found: EngineLayer | None,
    *,
    is_sparse: bool,
    dense: EngineArtifact | None,
    layers: Sequence[LayerTime],
) -> Twin:
    """Look a node up in the other engines.

    Args:
        names: of the node in engines.
        found: the engine's layer that computes it.
        is_sparse: whether it has a sparse tactic; only then do the times of two engines compare a sparse with a dense one.
        dense: the engine of the dense file.
        layers: times of the layers of several engines.
    """

    def timed(role: EngineRole) -> LayerTime | None:
        of_role = carriers(names, [layer for layer in layers if layer.engine == role])
        # of several layers that a node was split into, the one that takes longest multiplies
        return max(of_role, key=lambda layer: layer.median_ms, default=None)

    name = found.name if found is not None else ""
    own = next((layer for layer in layers if layer.engine == "sparse" and layer.name == name), None) or timed("sparse")
    same_weights = timed("forbidden")
    of_dense = [layer.tactic for layer in carriers(names, dense.layers if dense is not None else ()) if layer.tactic]
    tactic = same_weights.tactic if same_weights is not None and same_weights.tactic else next(iter(of_dense), "")
    times: tuple[TacticTimes, ...] = ()
    if is_sparse and own is not None and same_weights is not None:
        times = (TacticTimes(sparse_ms=own.median_ms, dense_ms=same_weights.median_ms, source="profile"),)
    return Twin(
        tactic=tactic,
        median_ms=own.median_ms if own is not None else None,
        share=own.share if own is not None else None,
        times=times,
    )
