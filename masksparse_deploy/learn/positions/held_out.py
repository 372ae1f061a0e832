"""The loss on images held out from training, of a network in training with any map of positions."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from accelerate.utils import reduce
from torch import nn

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.batch_norm import batch_norms
from masksparse_deploy.learn.loss import masking_loss
from masksparse_deploy.learn.positions.apply import PositionHook
from masksparse_deploy.learn.positions.maps import PositionMaps

__all__ = ["HeldOutLoss"]


@dataclass(frozen=True, eq=False, kw_only=True)
class HeldOutLoss:
    """The loss of training, without its noise: images as they are, and nothing moves.

    Batch norms stay in the mode of training. Their running statistics are means over many maps, so that the statistics of each
    batch, with the map's own zeros in them, say better what a map is worth.

    Attributes:
        network: in training; as it was after every call, but for the masks of its positions.
        hooks: on it, by layer name.
        maps: draws the maps.
        samples: images held out, and their labels where they are known.
        dense_logits: of the dense network for them, float32 (count, classes); None without distillation.
        options: position_rate, batch_size, distillation and temperature.
    """

    network: nn.Module
    hooks: Mapping[str, PositionHook]
    maps: PositionMaps
    samples: Samples
    dense_logits: npt.NDArray[np.float32] | None
    options: MaskOptions

    @property
    def batch_count(self) -> int:
        """How many batches there are; images that do not fill one are left out, unless they are all there is."""
        return max(1, len(self.samples) // self.options.batch_size)

    def __call__(self, number: int, batches: range) -> float:
        """The mean loss of the map `number` over some of the batches, the same in every process."""
        for name, keep in self.maps.keep(number, self.options.position_rate).items():
            self.hooks[name].set(keep)
        with torch.no_grad(), _unmoved_statistics(self.network):
            losses = [self._loss(batch) for batch in batches]
        # GPUs may round differently, and processes must not settle on different maps.
        mean = reduce(torch.stack(losses).mean(), "mean")
        assert isinstance(mean, torch.Tensor)
        return float(mean)

    def _loss(self, batch: int) -> torch.Tensor:
        part = slice(batch * self.options.batch_size, (batch + 1) * self.options.batch_size)
        device = next(self.network.parameters()).device
        images, labels = torch.tensor(self.samples.images[part], device=device), self.samples.known_labels
        logits = self.network(images.contiguous(memory_format=torch.channels_last)).float()
        return masking_loss(
            logits,
            None if labels is None else torch.tensor(labels[part], device=device),
            None if self.dense_logits is None else torch.tensor(self.dense_logits[part], device=device),
            distillation=self.options.distillation,
            temperature=self.options.temperature,
        ).double()


@contextmanager
def _unmoved_statistics(network: nn.Module) -> Iterator[None]:
    buffers = [buffer for module in batch_norms(network).values() for buffer in module.buffers()]
    before = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        for buffer, value in zip(buffers, before, strict=True):
            buffer.copy_(value)
