"""Fresh weights for a network that is to be trained from scratch."""

import copy

import torch
from torch import nn

from masksparse_deploy.core.errors import UsageError

__all__ = ["draw_fresh_weights"]


def draw_fresh_weights(network: nn.Module, seed: int) -> None:
    """Have every module of `network` draw its parameters and reset its statistics as when it was made, in place.

    The same seed gives the same weights on every device.

    Raises:
        UsageError: parameters lie in a module without `reset_parameters`, which cannot draw them.
    """
    for name, module in network.named_modules():
        own = next(iter(module._parameters), None)
        if own is not None and not callable(getattr(module, "reset_parameters", None)):
            raise UsageError(
                f"mask.initialization scratch: {name or type(module).__name__} ({type(module).__name__}) holds the parameter "
                f"{own} and has no method reset_parameters() that draws it; add one, or use initialization: pretrained"
            )
    # On the CPU, whose random numbers are those of every machine.
    fresh = copy.deepcopy(network).cpu()
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        # Modules before those that hold them, which may go on from what these drew.
        fresh.apply(_reset)
    network.load_state_dict(fresh.state_dict())


def _reset(module: nn.Module) -> None:
    reset = getattr(module, "reset_parameters", None)
    if callable(reset):
        reset()
