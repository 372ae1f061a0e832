"""Weights in training under masks that follow them."""

from collections.abc import Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.dynamic.masked_weight import MaskedWeight
from masksparse_deploy.learn.dynamic.semi_structured import current_gpu, kernel_obstacle, use_sparse_products
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.fresh_weights import draw_fresh_weights
from masksparse_deploy.learn.mask_rule import MaskRule
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["WeightTrainee"]

# Between the two best of short runs from the pretrained CIFAR-10 ResNet-20: docs/measurements/accuracy.md.
_PEAK_LEARNING_RATE = 0.01
# Where blocks are pruned there is more to make good: the best of the runs that docs/measurements/blocks.md lists.
_PEAK_UNDER_BLOCKS = 0.05
# What networks of this kind are trained with from fresh weights at batches of 128 images (He et al. 2016, section 4.2).
_PEAK_FROM_SCRATCH = 0.1
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4


@final
class WeightTrainee(Trainee):
    """All parameters of a network in training, the layers' weights behind masks that are chosen by a rule."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[EligibleLayer],
        rule: MaskRule,
        *,
        dtype: torch.dtype = torch.float32,
        fresh_seed: int | None = None,
    ) -> None:
        """Put masks before the weights of all `layers`, in place.

        Args:
            network: as trained, or with fresh weights; all of its parameters will be trained.
            layers: the layers to mask.
            rule: how masks are chosen.
            dtype: that products are computed in; with a 16-bit one, layers use sparse kernels where the GPU has them.
            fresh_seed: of the fresh weights that training starts with; None to start with those of the network.

        Raises:
            UsageError: what `draw_fresh_weights` raises.
        """
        trained = _PEAK_UNDER_BLOCKS if isinstance(rule.pattern, BlockPattern) else _PEAK_LEARNING_RATE
        self.peak_learning_rate = trained if fresh_seed is None else _PEAK_FROM_SCRATCH
        self._rule = rule
        self._parameters = {name: found for name, found in network.named_parameters() if found.is_floating_point()}
        self._before = {name: _array(parameter) for name, parameter in self._parameters.items()}
        if fresh_seed is not None:
            draw_fresh_weights(network, fresh_seed)
        # Networks are loaded with frozen parameters.
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._masked: dict[str, MaskedWeight] = {}
        for layer in layers:
            weight = self._parameters[layer.weight_name]
            masked = MaskedWeight(weight.detach(), rule.first(_array(weight)))
            # "unsafe" leaves out a trial run; shape and dtype are kept by construction.
            module = network.get_submodule(layer.name)
            parametrize.register_parametrization(module, "weight", masked, unsafe=True)
            pattern = rule.pattern
            if isinstance(pattern, NMPattern) and kernel_obstacle(module, pattern, dtype, current_gpu(weight.device)) is None:
                use_sparse_products(module, pattern, dtype)
            self._masked[layer.weight_name] = masked

    def learned(self) -> Mapping[str, Sequence[nn.Parameter]]:
        """See `Trainee.learned`."""
        return {name: [parameter] for name, parameter in self._parameters.items()}

    def optimizer(self) -> torch.optim.Optimizer:
        """See `Trainee.optimizer`: SGD with Nesterov momentum, and decay of what is multiplied by activations."""
        parameters = self._parameters.values()
        decayed = {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": _WEIGHT_DECAY}
        others = {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0}
        optimizer = torch.optim.SGD([decayed, others], momentum=_MOMENTUM, nesterov=True)
        if self._rule.dropped_decay:
            # Once a step, on gradients that are summed and unscaled.
            optimizer.register_step_pre_hook(lambda *_: self._decay_dropped())
        return optimizer

    def _decay_dropped(self) -> None:
        for name, masked in self._masked.items():
            parameter = self._parameters[name]
            if parameter.grad is not None:
                parameter.grad.add_((1 - masked.keep) * parameter.detach(), alpha=self._rule.dropped_decay)

    def begin_step(self, step: int, total_steps: int, seed: int) -> None:
        """See `Trainee.begin_step`; what is random in the rule has a seed of its own, the same in every process."""
        if not self._rule.is_due(step, total_steps):
            return
        for layer, (name, masked) in enumerate(self._masked.items()):
            weight = _array(self._parameters[name])
            # What diverged keeps its mask until the next check of the training reports it.
            if np.isfinite(weight).all():
                masked.set(self._rule.choose(weight, masked.kept(), step=step, total_steps=total_steps, layer=layer))

    def masks(self) -> Mapping[str, LayerMask]:
        """See `Trainee.masks`: those of the last step, which statistics and kept weights are for, if training is at its end."""
        return {
            name: LayerMask(
                weight_name=name,
                keep=self._rule.finished(_array(self._parameters[name]), masked.kept()),
                group_axis=GROUP_AXIS,
                pattern=self._rule.pattern,
            )
            for name, masked in self._masked.items()
        }

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Trainee.weights`: parameters that moved, 0 where a mask drops them."""
        found, masks = {}, self.masks()
        for name, parameter in self._parameters.items():
            array = _array(parameter)
            if np.array_equal(array, self._before[name]):
                continue
            found[name] = np.where(masks[name].keep, array, np.float32(0)) if name in masks else array
        return found

    def state(self) -> dict[str, Any]:
        """See `Trainee.state`."""
        return {
            "parameters": {name: parameter.detach() for name, parameter in self._parameters.items()},
            "keep": {name: masked.keep for name, masked in self._masked.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """See `Trainee.restore`."""
        for name, parameter in self._parameters.items():
            parameter.copy_(state["parameters"][name])
        for name, masked in self._masked.items():
            masked.keep.copy_(state["keep"][name])


def _array(parameter: nn.Parameter) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = parameter.detach().cpu().numpy().copy()
    return array
