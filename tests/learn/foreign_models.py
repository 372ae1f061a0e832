"""A small network as pruning tools would leave it: the same masks in the form of each tool's checkpoint."""

from collections.abc import Callable, Iterable

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.ao.pruning import FakeSparsity
from torch.nn.utils import parametrize, prune

from masksparse_deploy.core.patterns import NMPattern
from tests.models.tiny_cnn import TinyCnn, tiny_cnn

SPARSE_LAYERS = ("block.conv1", "block.conv2", "block.shortcut.0", "fc")
TWO_FOUR = NMPattern(n=2, m=4)

State = dict[str, torch.Tensor]


def network() -> TinyCnn:
    return tiny_cnn(seed=1)


def along_inputs(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """As ASP and Model-Optimizer cut a kernel."""
    return TWO_FOUR.keep_largest(np.abs(weight), group_axis=1)


def along_outputs(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    return TWO_FOUR.keep_largest(np.abs(weight), group_axis=0)


def along_taps(weight: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """As the published code of arXiv 2411.00288 cuts a kernel: four consecutive weights in memory."""
    return TWO_FOUR.keep_largest(np.abs(weight).reshape(-1), group_axis=0).reshape(weight.shape)


def planted(
    cut: Callable[[npt.NDArray[np.float32]], npt.NDArray[np.bool_]] = along_inputs, layers: Iterable[str] = SPARSE_LAYERS
) -> State:
    """Weight name -> the mask of each of `layers`."""
    model = network()
    weights = {f"{layer}.weight": model.get_parameter(f"{layer}.weight").detach().numpy() for layer in layers}
    return {name: torch.from_numpy(cut(weight)) for name, weight in weights.items()}


def plain(masks: State) -> State:
    """Zeros in the weights, and nothing else."""
    state = network().state_dict()
    return {name: value * masks[name] if name in masks else value for name, value in state.items()}


def asp(masks: State) -> State:
    """apex.contrib.sparsity: masked weights, buffers with the mask and with what was pruned."""
    dense, state = network().state_dict(), plain(masks)
    for name, mask in masks.items():
        module = name.removesuffix("weight")
        state[f"{module}__weight_mma_mask"] = mask
        state[f"{module}__weight_mma_pruned_p"] = dense[name] * ~mask
    return state


def model_optimizer(masks: State) -> dict[str, object]:
    """modelopt.torch.opt.save: dense weights, masks beside them, and a description of what was done."""
    state = network().state_dict()
    state.update({f"{name.removesuffix('weight')}_weight_mask": mask for name, mask in masks.items()})
    done = [("sparse_magnitude", {"config": {"nn.Conv2d": {"*": {}}}, "metadata": {}})]
    return {"modelopt_state": {"modelopt_state_dict": done, "modelopt_version": "0.43.0"}, "model_state_dict": state}


def torch_prune(masks: State) -> State:
    """torch.nn.utils.prune before prune.remove."""
    model = network()
    for name, mask in masks.items():
        prune.custom_from_mask(model.get_submodule(name.removesuffix(".weight")), "weight", mask)
    return model.state_dict()


class StoredMask(nn.Module):
    """A parametrization that, unlike torch's own, saves its mask."""

    def __init__(self, mask: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mask", mask)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.mask


def parametrized(masks: State, kind: Callable[[torch.Tensor], nn.Module] = StoredMask) -> State:
    """torch.ao.pruning before squash_mask, with the masks in the file."""
    model = network()
    for name, mask in masks.items():
        parametrize.register_parametrization(model.get_submodule(name.removesuffix(".weight")), "weight", kind(mask))
    return model.state_dict()


def parametrized_without_masks(masks: State) -> State:
    """torch.ao.pruning before squash_mask, as torch saves it: the masks are not in the file."""
    return parametrized(masks, FakeSparsity)


def data_parallel(masks: State) -> State:
    return {f"module.{name}": value for name, value in asp(masks).items()}


FORMS: dict[str, tuple[str, Callable[[State], object]]] = {
    "plain": ("plain zeros", plain),
    "asp": ("ASP", asp),
    "asp-parallel": ("ASP", data_parallel),
    "model-optimizer": ("Model-Optimizer", model_optimizer),
    "prune": ("torch.nn.utils.prune", torch_prune),
    "parametrized": ("torch.ao.pruning", parametrized),
}
