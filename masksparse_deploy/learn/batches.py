"""Which images every process sees in every step: a function of the seed, so that learning can go on in mid-epoch."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch

from masksparse_deploy.core.config import MaskOptions
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.learn.augmentation import augment

__all__ = ["Batches"]

# First words of the seeds, so that no two sources of randomness share their numbers.
_ORDER, _AUGMENTATION, _NOISE = 1, 2, 3


@dataclass(frozen=True, eq=False, kw_only=True)
class Batches:
    """The training images of one process, in an order that is drawn anew for each epoch.

    A step takes `options.accumulate` batches in every process. No image comes twice in an epoch, whichever the process; images
    that do not fill a step are left out of it. Of fewer images than a step takes, the batches are smaller.

    Attributes:
        train: all training images, the same in every process.
        used: which of them are trained on, int64; None for all.
        options: batch_size, accumulate, augment and seed are looked at.
        process_count: how many processes learn together.
        process_index: which of them this is.

    Raises:
        UsageError: there are not enough images for so many batches.
    """

    train: Samples
    options: MaskOptions
    used: npt.NDArray[np.int64] | None = None
    process_count: int = 1
    process_index: int = 0

    def __post_init__(self) -> None:
        # Batch norm cannot compute a variance from a single value.
        smallest = min(self.options.batch_size, 2 if self.options.batch_norm else 1)
        if self.batch_size < smallest:
            raise UsageError(
                f"data.train has {self._count} images, and a step needs at least {smallest * self._parts}: {smallest} for "
                f"each of mask.accumulate {self.options.accumulate} batches in each of {self.process_count} processes; use "
                "more images, a smaller mask.accumulate, or fewer processes"
            )

    @property
    def _count(self) -> int:
        return len(self.train) if self.used is None else len(self.used)

    @property
    def _parts(self) -> int:
        return self.options.accumulate * self.process_count

    @property
    def batch_size(self) -> int:
        """Images that a process handles at once."""
        return min(self.options.batch_size, self._count // self._parts)

    @property
    def epoch_steps(self) -> int:
        """Steps of one pass over the training images."""
        return self._count // (self.batch_size * self._parts)

    def of_step(self, step: int, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
        """The batches of this process in a step; steps are counted from 0, through all epochs.

        Yields:
            Images, float32 (batch_size, channels, height, width) in channels_last format, and labels, int64 (batch_size,) or
            None where they are unknown; both on `device`.
        """
        epoch, step_of_epoch = divmod(step, self.epoch_steps)
        order = _order(self.options.seed, epoch, self._count)
        for part in range(self.options.accumulate):
            # Neighbouring batches go to different processes: two processes see in a step what one sees with accumulate 2.
            index = (step_of_epoch * self.options.accumulate + part) * self.process_count + self.process_index
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            chosen = chosen if self.used is None else self.used[chosen]
            generator = np.random.default_rng((_AUGMENTATION, self.options.seed, epoch, index))
            images = augment(torch.from_numpy(self.train.images[chosen]).to(device), self.options.augment, generator)
            known = self.train.known_labels
            labels = None if known is None else torch.from_numpy(known[chosen]).to(device)
            yield images.contiguous(memory_format=torch.channels_last), labels

    def noise_seed(self, step: int) -> int:
        """The seed of what is random inside the network in a step of this process."""
        words = (_NOISE, self.options.seed, step, self.process_index)
        return int(np.random.SeedSequence(words).generate_state(1)[0])


@lru_cache(maxsize=1)
def _order(seed: int, epoch: int, count: int) -> npt.NDArray[np.int64]:
    """All images in the order of one epoch, int64 (count,)."""
    return np.random.default_rng((_ORDER, seed, epoch)).permutation(count)
