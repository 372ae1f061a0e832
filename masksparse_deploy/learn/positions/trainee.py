"""A network in training that leaves out more and more positions, by a fresh map in every step, and at last by one."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.positions import PositionMask
from masksparse_deploy.learn.positions.apply import PositionHook
from masksparse_deploy.learn.positions.choice import MapChoice
from masksparse_deploy.learn.positions.maps import PositionMaps, freezing_step, ramped_rate
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["PositionTrainee", "put_hooks"]


def put_hooks(network: nn.Module, maps: PositionMaps) -> dict[str, PositionHook]:
    """Hooks on all layers of `maps`, by layer name; they drop nothing yet."""
    hooks = {name: PositionHook(name, np.ones(size, dtype=np.bool_)) for name, size in maps.sizes.items()}
    for name, hook in hooks.items():
        network.get_submodule(name).register_forward_hook(hook)
    return hooks


@final
class PositionTrainee(Trainee):
    """Another trainee, whose weights learn while positions are left out: masks of weights and of positions together."""

    def __init__(
        self,
        inner: Trainee,
        hooks: Mapping[str, PositionHook],
        maps: PositionMaps,
        choice: MapChoice,
        *,
        rate: float,
        ramp_end: float,
    ) -> None:
        """Take over the hooks.

        Args:
            inner: what trains the weights, under masks or without.
            hooks: on the same network, see `put_hooks`.
            maps: draws the maps.
            choice: settles on a map at the end of the ramp.
            rate: the final share of positions that is dropped.
            ramp_end: the share of the steps after which it is reached.
        """
        self.peak_learning_rate = inner.peak_learning_rate
        self._inner, self._hooks, self._maps, self._choice = inner, hooks, maps, choice
        self._rate, self._ramp_end = rate, ramp_end
        self._settled: int | None = None
        self._keep: Mapping[str, npt.NDArray[np.bool_]] = {}

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """See `Trainee.learned`."""
        return self._inner.learned()

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Trainee.optimizer`."""
        return self._inner.optimizer()

    def begin_step(self, step: int, total_steps: int, seed: int) -> None:
        """See `Trainee.begin_step`; what is random about positions is a function of their own seed and of the step."""
        self._inner.begin_step(step, total_steps, seed)
        if self._settled is not None:
            return
        if step >= freezing_step(total_steps, self._ramp_end):
            self._settled = self._choice.settle(step, total_steps)
            self._set(self._settled, self._rate)
        else:
            self._set(step, ramped_rate(step, total_steps, self._rate, self._ramp_end))

    def end_step(self, step: int, loss: torch.Tensor) -> None:
        """See `Trainee.end_step`."""
        self._inner.end_step(step, loss)
        if self._settled is None:
            self._choice.seen(step, loss)

    def masks(self) -> Mapping[str, LayerMask]:
        """See `Trainee.masks`."""
        return self._inner.masks()

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Trainee.weights`."""
        return self._inner.weights()

    def positions(self) -> Mapping[str, PositionMask]:
        """See `Trainee.positions`: those of the last step."""
        return {name: PositionMask(layer=name, keep=keep) for name, keep in self._keep.items()}

    def state(self) -> dict[str, Any]:
        """See `Trainee.state`."""
        return {"inner": self._inner.state(), "settled": self._settled, "choice": self._choice.state()}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainee.restore`; before the map is settled, the next step draws its own."""
        self._inner.restore(state["inner"])
        self._choice.restore(state["choice"])
        self._settled = state["settled"]
        if self._settled is not None:
            self._set(self._settled, self._rate)

    def _set(self, number: int, rate: float) -> None:
        self._keep = self._maps.keep(number, rate)
        for name, hook in self._hooks.items():
            hook.set(self._keep[name])
