"""The answers of a network with some of its state replaced, and their top-1 accuracy."""

import copy
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.func import functional_call

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.masks import LayerMask
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples

__all__ = ["compute_logits", "count_correct", "substitutes"]


def substitutes(
    model: nn.Module,
    masks: Mapping[str, LayerMask],
    statistics: Mapping[str, npt.NDArray[np.float32]],
    weights: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> dict[str, torch.Tensor]:
    """The state that masks, statistics and new weights replace, by name: parameters, and running statistics."""
    replaced = {name: model.get_parameter(name) * torch.tensor(mask.keep) for name, mask in masks.items()}
    # New weights are 0 where their mask drops them.
    replaced.update({name: torch.tensor(array) for name, array in {**statistics, **(weights or {})}.items()})
    return replaced


def compute_logits(
    model: nn.Module,
    samples: Samples,
    replaced: Mapping[str, torch.Tensor] | None = None,
    *,
    batch_size: int,
    what: str = "network",
    device: torch.device | None = None,
    progress: Progress = silent,
) -> npt.NDArray[np.float32]:
    """What the network answers to every sample, in float32.

    Args:
        model: in evaluation mode; not changed.
        samples: images; labels are not looked at.
        replaced: state to use instead of the network's own, by name (see `substitutes`).
        batch_size: images in a batch.
        what: names the network in progress and messages, as "dense".
        device: where the network runs, as a copy if it is elsewhere; by default the CPU.
        progress: told after each batch.

    Returns:
        float32 (count, classes).

    Raises:
        ArtifactError: the network returns NaN or infinite values.
    """
    device = device or torch.device("cpu")
    if any(tensor.device.type != device.type for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).to(device)
    state = {name: tensor.to(device) for name, tensor in (replaced or {}).items()}
    parts: list[npt.NDArray[np.float32]] = []
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            images = torch.tensor(samples.images[start : start + batch_size], device=device)
            logits = functional_call(model, state, (images.contiguous(memory_format=torch.channels_last),)).cpu()
            if not bool(torch.isfinite(logits).all()):
                raise ArtifactError(
                    f"the {what} network returns NaN or infinite values for images {start} to {start + len(images) - 1}; "
                    "check the checkpoint and the normalisation of the images"
                )
            parts.append(logits.float().numpy())
            progress(f"evaluating {what}", min(start + batch_size, len(samples)), len(samples))
    return np.concatenate(parts)


def count_correct(
    model: nn.Module,
    samples: Samples,
    replaced: Mapping[str, torch.Tensor] | None = None,
    *,
    batch_size: int,
    what: str = "network",
    device: torch.device | None = None,
    progress: Progress = silent,
) -> int:
    """How many samples the network classifies correctly (top-1); arguments and errors are those of `compute_logits`."""
    logits = compute_logits(model, samples, replaced, batch_size=batch_size, what=what, device=device, progress=progress)
    return int(np.count_nonzero(logits.argmax(1) == samples.labels))
