"""Where on its way into the engine a layer keeps its sparsity, and where it loses it."""

from typing import Literal

from masksparse_deploy.core.artifacts.document import Record

__all__ = ["STAGES", "Checkpoint", "LayerSurvival", "StageState", "SurvivalStage", "SurvivalState"]

SurvivalStage = Literal["module", "onnx", "converted", "engine"]
SurvivalState = Literal["conforming", "broken", "missing", "not checked"]

# In the order in which a layer passes them: the masked module, its export with the masks in it, the file after folding and
# conversion to its precision, and what the engine holds.
STAGES: tuple[SurvivalStage, ...] = ("module", "onnx", "converted", "engine")


class Checkpoint(Record):
    """How many groups of a layer kept too many weights at one stage of baking: `violation_count` of `group_count`."""

    stage: Literal["module", "onnx", "converted"]
    violation_count: int
    group_count: int


class StageState(Record):
    """What was found at one stage; the counts are 0 unless the groups were counted, `why` is empty where they were."""

    state: SurvivalState
    violation_count: int = 0
    group_count: int = 0
    why: str = ""

    def __str__(self) -> str:
        if self.state == "broken":
            return f"broken ({self.violation_count:,} of {self.group_count:,} groups)"
        return f"{self.state}: {self.why}" if self.why else self.state


class LayerSurvival(Record):
    """One masked layer at the four checkpoints; `lost_at` is the first stage at which it was broken or missing, else None.

    `runs_sparse` tells whether a sparse tactic computes it in the engine; None where the runtime does not tell.
    """

    layer: str
    pattern: str
    module: StageState
    onnx: StageState
    converted: StageState
    engine: StageState
    lost_at: SurvivalStage | None
    runs_sparse: bool | None = None

    def at(self, stage: SurvivalStage) -> StageState:
        """The state at `stage`."""
        state: StageState = getattr(self, stage)
        return state
