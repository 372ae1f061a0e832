"""Top-1 accuracy of a network with some of its state replaced."""

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

__all__ = ["count_correct", "substitutes"]


def substitutes(
    model: nn.Module, masks: Mapping[str, LayerMask], statistics: Mapping[str, npt.NDArray[np.float32]]
) -> dict[str, torch.Tensor]:
    """The state that masks and statistics replace, by name: masked weights, and running statistics."""
    replaced = {name: model.get_parameter(name) * torch.tensor(mask.keep) for name, mask in masks.items()}
    replaced.update({name: torch.tensor(array) for name, array in statistics.items()})
    return replaced


def count_correct(
    model: nn.Module,
    samples: Samples,
    replaced: Mapping[str, torch.Tensor] | None = None,
    *,
    batch_size: int,
    what: str = "network",
    progress: Progress = silent,
) -> int:
    """How many samples the network classifies correctly (top-1), in float32.

    Args:
        model: in evaluation mode; not changed.
        samples: images and labels.
        replaced: state to use instead of the network's own, by name (see `substitutes`).
        batch_size: images in a batch.
        what: names the network in progress and messages, as "dense".
        progress: told after each batch.

    Raises:
        ArtifactError: the network returns NaN or infinite values.
    """
    correct = 0
    with torch.inference_mode():
        for start in range(0, len(samples), batch_size):
            images = torch.tensor(samples.images[start : start + batch_size])
            logits = functional_call(model, dict(replaced or {}), (images.contiguous(memory_format=torch.channels_last),))
            if not bool(torch.isfinite(logits).all()):
                raise ArtifactError(
                    f"the {what} network returns NaN or infinite values for test images {start} to {start + len(images) - 1}; "
                    "check the checkpoint and the normalisation of the images"
                )
            labels = samples.labels[start : start + batch_size]
            correct += int(np.count_nonzero(logits.argmax(1).numpy() == labels))
            progress(f"evaluating {what}", min(start + batch_size, len(samples)), len(samples))
    return correct
