"""Soft uniform block pruning: which blocks a 1xN layer is trained with, and which it ends with."""

from dataclasses import dataclass
from typing import final

import numpy as np

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.learn.blocks.regrowth import pruned_share, regrow, regrown_count, regrowth_probabilities
from masksparse_deploy.learn.blocks.scores import Criterion, block_scores
from masksparse_deploy.learn.mask_rule import Keep, MaskRule, Weight

__all__ = ["Subp"]

# First word of the seeds of regrowth; learn.batches and learn.positions have those before.
_REGROWTH = 6
# The authors' choice for dropped weights, after SR-STE (Zhou et al. 2021).
_DROPPED_DECAY = 2e-4
# In shorter trainings than so many epochs, masks are chosen more often than at the start of each.
_FEWEST_CHOICES = 20


@final
@dataclass(frozen=True, kw_only=True)
class Subp(MaskRule):
    """Prunes the lowest blocks of every group, and draws some of them back until pruning is final.

    Xiang et al. 2023, "SUBP: Soft Uniform Block Pruning for 1xN Sparse CNNs Multithreading Acceleration": from W * keep, the
    C_in - R lowest blocks of every group are pruned, and regrown_count of them drawn back by their scores, so that all groups
    keep equally many at any time. Weights of dropped blocks go on moving by the dense gradient and come back with what they
    are then. Masks are chosen at the start of every epoch, and 20 times in trainings of fewer epochs; the last choice draws
    nothing back, so that exactly R are kept.

    Attributes:
        pattern: uniform.
        criterion: what blocks are scored by.
        start: share of the steps after which the last regrown blocks begin to stay pruned.
        end: share of the steps after which no block is regrown.
        epochs: how often masks are chosen at least; training that ends before so many epochs chooses as often in fewer steps.
        seed: of the draws.
    """

    pattern: BlockPattern
    criterion: Criterion
    start: float
    end: float
    epochs: int
    seed: int
    dropped_decay: float = _DROPPED_DECAY

    def first(self, weight: Weight) -> Keep:
        """See `MaskRule.first`: everything."""
        return np.ones(weight.shape, dtype=np.bool_)

    def is_due(self, step: int, total_steps: int) -> bool:
        """See `MaskRule.is_due`."""
        count = self._choice_count(total_steps)
        return step == 0 or step * count // total_steps != (step - 1) * count // total_steps

    def choose(self, weight: Weight, keep: Keep, *, step: int, total_steps: int, layer: int) -> Keep:
        """See `MaskRule.choose`."""
        count = self._choice_count(total_steps)
        is_last = step * count // total_steps == count - 1
        share = 1.0 if is_last else pruned_share(step / total_steps, start=self.start, end=self.end)
        scores = block_scores(weight * keep, self.pattern.n, self.criterion)
        kept = self.pattern.keep_largest(scores)
        pruned = np.nonzero(~kept)[1].reshape(len(kept), -1)
        regrown = regrown_count(pruned.shape[1], share)
        if regrown:
            generator = np.random.default_rng((_REGROWTH, self.seed, step, layer))
            probabilities = regrowth_probabilities(np.take_along_axis(scores, pruned, axis=1))
            back = np.take_along_axis(pruned, regrow(probabilities, regrown, generator), axis=1)
            np.put_along_axis(kept, back, True, axis=1)
        return self.pattern.expand(kept, weight.shape)

    def finished(self, weight: Weight, keep: Keep) -> Keep:
        """See `MaskRule.finished`: without what was drawn back, or was never pruned yet."""
        blocks = self.pattern.blocks(keep)
        if int(blocks[0].sum()) == self.pattern.kept_channels(weight.shape[1]):
            return keep
        # Scores of blocks that hold nothing must not win over kept ones that happen to be zero.
        scores = np.where(blocks, block_scores(weight * keep, self.pattern.n, self.criterion), -np.inf)
        return self.pattern.expand(self.pattern.keep_largest(scores), weight.shape)

    def _choice_count(self, total_steps: int) -> int:
        return min(max(self.epochs, _FEWEST_CHOICES), total_steps)
