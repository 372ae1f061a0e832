"""Checkpoints of pruning tools: the masks among their tensors, and the plain state dict that is left without them."""

import re
from collections import defaultdict
from collections.abc import Mapping, Set
from dataclasses import dataclass, field

import torch

from masksparse_deploy.core.artifacts.foreign import Tool
from masksparse_deploy.core.errors import ArtifactError

__all__ = ["ForeignState", "read_foreign"]


@dataclass(frozen=True, eq=False, kw_only=True)
class ForeignState:
    """A checkpoint, taken apart.

    Attributes:
        tool: which tool's names were found.
        state: the network's own names -> tensors, masks applied: what the tool's network computed with.
        masks: parameter name -> bool of its shape, True keeps; only where the file stores masks.
        unmasked: parameters that a tool masks, but whose masks it left out of the file.
    """

    tool: Tool
    state: Mapping[str, torch.Tensor]
    masks: Mapping[str, torch.Tensor] = field(default_factory=dict)
    unmasked: Set[str] = frozenset()


# Each tool's names for (parameter, mask, tensor to drop), as patterns with the groups "module" and "parameter".
# apex.contrib.sparsity registers buffers beside the parameter, which itself is stored masked.
_ASP = re.compile(r"(?P<module>(?:.*\.)?)__(?P<parameter>.+)_mma_(?P<role>mask|pruned_p)")
# modelopt.torch.sparsity stores the parameter unmasked, and the mask as a buffer.
_MODELOPT = re.compile(r"(?P<module>(?:.*\.)?)_(?P<parameter>weight)_(?P<role>mask)")
# torch.nn.utils.prune renames the parameter and multiplies it by the mask before each forward pass.
_PRUNE = re.compile(r"(?P<module>(?:.*\.)?)(?P<parameter>[^.]+)_(?P<role>orig|mask)")
# torch.ao.pruning parametrizes the parameter.
_PARAMETRIZED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<parameter>[^.]+)\.(?P<role>original|\d+\.mask)")

_NAMES: dict[Tool, re.Pattern[str]] = {
    "ASP": _ASP,
    "Model-Optimizer": _MODELOPT,
    "torch.ao.pruning": _PARAMETRIZED,
    "torch.nn.utils.prune": _PRUNE,
}


def read_foreign(stored: Mapping[str, torch.Tensor], own_names: Set[str], *, where: str) -> ForeignState:
    """Take a checkpoint apart.

    Names that the network itself has are left alone, whatever they look like.

    Args:
        stored: the checkpoint's tensors.
        own_names: the names in the network's state dict.
        where: names the file in messages.

    Raises:
        ArtifactError: a mask has another shape than its parameter or holds other values than 0 and 1.
    """
    state: dict[str, torch.Tensor] = {}
    masks: dict[str, torch.Tensor] = {}
    stacked: dict[str, list[torch.Tensor]] = defaultdict(list)
    parametrized: list[str] = []
    tools: list[Tool] = []
    for name, tensor in stored.items():
        found = None if name in own_names else _recognise(name, own_names)
        if found is None:
            # What is neither a tool's nor the network's is refused, by name, when the network is filled.
            state[name] = tensor
            continue
        tool, parameter, role = found
        tools.append(tool)
        if role.endswith("mask"):
            stacked[parameter].append(tensor)
        elif role != "pruned_p":
            state[parameter] = tensor
        if role == "original":
            parametrized.append(parameter)
    for parameter in stacked.keys() & state.keys():
        weight = state[parameter]
        # Tools that were used one after the other multiply the weight by each one's mask.
        masks[parameter] = torch.stack([_checked(parameter, mask, weight, where) for mask in stacked[parameter]]).all(0)
        state[parameter] = torch.where(masks[parameter], weight, torch.zeros_like(weight))
    return ForeignState(
        tool=max(dict.fromkeys(tools), key=tools.count) if tools else "plain zeros",
        state=state,
        masks=masks,
        unmasked=frozenset(parametrized) - stacked.keys(),
    )


def _recognise(name: str, own_names: Set[str]) -> tuple[Tool, str, str] | None:
    """The tool that uses this name, the parameter of the network that it is about, and what it is to it."""
    for tool, pattern in _NAMES.items():
        match = pattern.fullmatch(name)
        if match and match["module"] + match["parameter"] in own_names:
            return tool, match["module"] + match["parameter"], match["role"]
    return None


def _checked(parameter: str, mask: torch.Tensor, weight: torch.Tensor, where: str) -> torch.Tensor:
    remedy = "save it again with the tool that made it"
    if mask.shape != weight.shape:
        raise ArtifactError(
            f"checkpoint {where}: the mask of {parameter} is {tuple(mask.shape)}, its weight {tuple(weight.shape)}; the file "
            f"is damaged or was put together from two networks: {remedy}"
        )
    keep = mask != 0
    if not bool((keep == (mask == 1)).all()):
        raise ArtifactError(f"checkpoint {where}: the mask of {parameter} holds values other than 0 and 1; {remedy}")
    return keep
