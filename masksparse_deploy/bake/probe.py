"""What PyTorch computes for a few images, so that stages without torch can tell whether a file kept the function."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save as save_safetensors

from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.optional import require

if TYPE_CHECKING:
    from torch import nn

__all__ = ["forward", "probe_bytes"]

Array = npt.NDArray[np.float32]


def forward(model: "nn.Module", images: Array, replaced: Mapping[str, Array]) -> Array:
    """Outputs of a network in eval mode with some of its parameters and buffers replaced; the network is left as it was.

    Args:
        model: from float32 images (batch, channels, height, width) to one float32 tensor.
        images: float32 (count, channels, height, width).
        replaced: name in the state dict -> float32 values.

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
        with torch.no_grad():
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


def probe_bytes(images: Array, dense_outputs: Array, sparse_outputs: Array) -> bytes:
    """The content of probe.safetensors: "images", "dense_outputs", "sparse_outputs", each float32 with the images first."""
    return save_safetensors({"images": images, "dense_outputs": dense_outputs, "sparse_outputs": sparse_outputs})
