"""What PyTorch computes for a few images, so that stages without torch can tell whether a file kept the function."""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as save_safetensors

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require
from masksparse_deploy.core.positions import PositionMask

if TYPE_CHECKING:
    from torch import nn

__all__ = ["forward", "probe_bytes"]

Array = npt.NDArray[np.float32]


def forward(
    model: "nn.Module", images: Array, replaced: Mapping[str, Array], positions: Mapping[str, PositionMask] | None = None
) -> Array:
    """Outputs of a network in eval mode with some of its parameters and buffers replaced; the network is left as it was.

    Args:
        model: from float32 images (batch, channels, height, width) to one float32 tensor.
        images: float32 (count, channels, height, width).
        replaced: name in the state dict -> float32 values.
        positions: name of a convolution -> which positions of its output are computed; others hold its bias.

    Returns:
        float32 (count, ...).

    Raises:
        MachineError: torch is missing.
        UsageError: the network has no such parameter or buffer, or gives a value that is not finite.
    """
    torch = require("torch", needed_for="computing reference outputs")
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    unknown = sorted(replaced.keys() - state.keys())
    if unknown:
        raise UsageError(f"the network has no parameter or buffer named {unknown[0]}; are the masks for another model?")
    device = next((tensor.device for tensor in state.values()), torch.device("cpu"))
    overrides = {name: torch.tensor(value, device=device) for name, value in replaced.items()}
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad(), ExitStack() as hooks:
            for name, mask in (positions or {}).items():
                hooks.enter_context(model.get_submodule(name).register_forward_hook(_leaving_out(mask)))
            inputs = torch.tensor(images, device=device)
            outputs = torch.func.functional_call(model, overrides, (inputs,))
    finally:
        for module, training in modes.items():
            module.training = training
    array = np.ascontiguousarray(outputs.detach().cpu().numpy())
    if not np.isfinite(array).all():
        raise UsageError(
            "the network gives values that are not finite (NaN or infinity) for the probe images; check its weights"
        )
    return array


def _leaving_out(mask: PositionMask) -> Callable[[Any, Any, Any], Any]:
    """A forward hook that puts the convolution's bias, or 0, at the positions that the mask drops."""

    def hook(module: Any, inputs: Any, output: Any) -> Any:
        keep = output.new_tensor(mask.keep, dtype=bool)
        bias = output.new_zeros(1) if module.bias is None else module.bias
        return output.where(keep, bias.reshape(1, -1, 1, 1))

    return hook


def probe_bytes(images: Array, dense_outputs: Array, sparse_outputs: Array) -> bytes:
    """The content of probe.safetensors: "images", "dense_outputs", "sparse_outputs", each float32 with the images first."""
    return save_safetensors({"images": images, "dense_outputs": dense_outputs, "sparse_outputs": sparse_outputs})
