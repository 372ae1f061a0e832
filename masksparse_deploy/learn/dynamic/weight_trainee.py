"""Weights in training under masks that follow them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, final

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.dynamic.masked_weight import MaskedWeight
from masksparse_deploy.learn.dynamic.semi_structured import current_gpu, kernel_obstacle, use_sparse_products
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer
from masksparse_deploy.learn.trainee import Trainee

__all__ = ["Choose", "WeightTrainee"]

# Takes |weight|, float32 in the weight's shape; returns keep, bool in the same shape.
Choose = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]]

# Between the two best of short runs from the pretrained CIFAR-10 ResNet-20: docs/measurements/accuracy.md.
_PEAK_LEARNING_RATE = 0.01
_MOMENTUM = 0.9
_WEIGHT_DECAY = 1e-4


@final
class WeightTrainee(Trainee):
    """All parameters of a network in training, the layers' weights behind masks that are chosen anew every so many steps."""

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[EligibleLayer],
        pattern: NMPattern,
        choose: Choose,
        *,
        mask_steps: int,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Put masks before the weights of all `layers`, in place.

        Args:
            network: as trained, or with fresh weights; all of its parameters will be trained.
            layers: the layers to mask.
            pattern: of the masks that `choose` makes.
            choose: the mask for given magnitudes.
            mask_steps: steps from one choice to the next.
            dtype: that products are computed in; with a 16-bit one, layers use sparse kernels where the GPU has them.
        """
        self.peak_learning_rate = _PEAK_LEARNING_RATE
        self._pattern, self._choose, self._mask_steps = pattern, choose, mask_steps
        self._parameters = {name: found for name, found in network.named_parameters() if found.is_floating_point()}
        self._before = {name: _array(parameter) for name, parameter in self._parameters.items()}
        # Networks are loaded with frozen parameters.
        for parameter in self._parameters.values():
            parameter.requires_grad_(True)
        self._masked: dict[str, MaskedWeight] = {}
        for layer in layers:
            weight = self._parameters[layer.weight_name]
            masked = MaskedWeight(weight.detach(), choose(_magnitude(weight)))
            # "unsafe" leaves out a trial run; shape and dtype are kept by construction.
            module = network.get_submodule(layer.name)
            parametrize.register_parametrization(module, "weight", masked, unsafe=True)
            if kernel_obstacle(module, pattern, dtype, current_gpu(weight.device)) is None:
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
        return torch.optim.SGD([decayed, others], momentum=_MOMENTUM, nesterov=True)

    def begin_step(self, step: int, total_steps: int, seed: int) -> None:
        """See `Trainee.begin_step`."""
        if step > 0 and step % self._mask_steps == 0:
            for name, masked in self._masked.items():
                magnitude = _magnitude(self._parameters[name])
                # What diverged keeps its mask until the next check of the training reports it.
                if np.isfinite(magnitude).all():
                    masked.set(self._choose(magnitude))

    def masks(self) -> Mapping[str, LayerMask]:
        """See `Trainee.masks`: those of the last step, which statistics and kept weights are for."""
        return {
            name: LayerMask(weight_name=name, keep=masked.kept(), group_axis=GROUP_AXIS, pattern=self._pattern)
            for name, masked in self._masked.items()
        }

    def weights(self) -> Mapping[str, npt.NDArray[np.float32]]:
        """See `Trainee.weights`: parameters that moved, 0 where a mask drops them."""
        found = {}
        for name, parameter in self._parameters.items():
            array = _array(parameter)
            if np.array_equal(array, self._before[name]):
                continue
            found[name] = np.where(self._masked[name].kept(), array, np.float32(0)) if name in self._masked else array
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


def _magnitude(parameter: nn.Parameter) -> npt.NDArray[np.float32]:
    return np.abs(_array(parameter))


def _array(parameter: nn.Parameter) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = parameter.detach().cpu().numpy().copy()
    return array
