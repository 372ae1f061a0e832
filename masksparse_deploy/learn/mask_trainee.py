"""Masks in training on frozen weights: the selectors' parameters move, and nothing else."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.attach import Method, attach
from masksparse_deploy.learn.eligibility import EligibleLayer
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["MaskTrainee"]

# Relative scores start near 1, and few have to change places; logits have to grow until draws are all but certain.
_PEAK_LEARNING_RATES: Mapping[Method, float] = {"scores": 0.01, "gumbel": 0.1}


@final
class MaskTrainee(Trainee):
    """A network with selectors attached."""

    def __init__(self, network: nn.Module, layers: Sequence[EligibleLayer], pattern: NMPattern, method: Method) -> None:
        """Attach selectors to all `layers`, in place.

        Raises:
            UsageError: what `attach` raises.
        """
        self.peak_learning_rate = _PEAK_LEARNING_RATES[method]
        self._attached = attach(network, layers, pattern, method)
        for selector in self._attached.selectors.values():
            selector.train()

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """See `Trainee.learned`."""
        return {name: list(selector.parameters()) for name, selector in self._attached.selectors.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Trainee.optimizer`."""
        # Decay would shrink all scores of a group alike, so it is off.
        return torch.optim.AdamW(self._attached.parameters(), weight_decay=0.0)

    def begin_step(self, step: int, total_steps: int, seed: int) -> None:
        """See `Trainee.begin_step`."""
        self._attached.begin_step(step / total_steps, seed)

    def masks(self) -> Mapping[str, LayerMask]:
        """See `Trainee.masks`."""
        return self._attached.masks()

    def state(self) -> dict[str, Any]:
        """See `Trainee.state`."""
        return {name: selector.state_dict() for name, selector in self._attached.selectors.items()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainee.restore`."""
        for name, selector in self._attached.selectors.items():
            selector.load_state_dict(state[name])
