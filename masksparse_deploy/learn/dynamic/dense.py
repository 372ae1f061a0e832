"""A network whose weights are trained and none of them masked."""

from collections.abc import Sequence
from functools import partial

from torch import nn

from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.dynamic.weight_trainee import WeightTrainee
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.mask_rule import Fixed

__all__ = ["dense_trainee"]


def dense_trainee(network: nn.Module, layers: Sequence[EligibleLayer]) -> WeightTrainee:
    """Make a copy of the network ready to be trained, in place; `layers` is empty."""
    assert not layers, "no weights are masked"
    pattern = NMPattern(n=2, m=4)
    # There is no layer for the rule to choose a mask for.
    return WeightTrainee(network, (), Fixed(pattern=pattern, chosen_by=partial(pattern.keep_largest, group_axis=GROUP_AXIS)))
