"""Whether images, labels, options and network fit one another."""

from collections.abc import Mapping

from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.probe import Probe

__all__ = ["check_data"]


def check_data(model: nn.Module, probe: Probe, splits: Mapping[str, Samples], options: MaskOptions) -> None:
    """Check data before anything is computed with them.

    Args:
        model: the network.
        probe: what `probe_model` found.
        splits: the images by their key under `data`, "train" among them.
        options: the sizes of batches.

    Raises:
        UsageError: images of different shapes, labels that the network does not know, or batches too small for batch norm.
    """
    train = splits["train"]
    for split, samples in splits.items():
        if samples.images.shape[1:] != train.images.shape[1:]:
            raise UsageError(
                f"training images have the shape {train.images.shape[1:]} (channels, height, width), {split} images "
                f"{samples.images.shape[1:]}; they must be alike: check data.train and data.{split}"
            )
        if samples.known_labels is None:
            continue
        low, high = int(samples.known_labels.min()), int(samples.known_labels.max())
        if low < 0 or high >= probe.class_count:
            raise UsageError(
                f"data.{split} has labels from {low} to {high}; the network tells {probe.class_count} classes apart, "
                f"so labels must run from 0 to {probe.class_count - 1}"
            )
    if batch_norms(model) and min(len(train), options.batch_size, options.calibration_count) < 2:
        raise UsageError(
            f"batch norm needs at least 2 images in a batch: mask.batch_size is {options.batch_size}, mask.calibration_count "
            f"{options.calibration_count}, and data.train has {len(train)} images"
        )
