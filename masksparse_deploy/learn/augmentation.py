"""Random shifts and mirroring of a batch of images."""

from typing import Literal

import numpy as np
import torch
from torch.nn import functional

__all__ = ["Augmentation", "augment"]

Augmentation = Literal["none", "shift", "shift-mirror"]

# The largest shift is an eighth of the image: 4 pixels of 32, 1 of 8.
_SHIFT_DIVISOR = 8


def augment(images: torch.Tensor, how: Augmentation, generator: np.random.Generator) -> torch.Tensor:
    """Shift every image by up to an eighth of its height and width, and mirror half of them.

    What a shift uncovers repeats the border, as the value of black is not known after normalisation.

    Args:
        images: float32 (count, channels, height, width), on any device.
        how: "none" returns the images as they are.
        generator: source of the shifts.
    """
    if how == "none":
        return images
    count, _, height, width = images.shape
    reach_y, reach_x = max(1, height // _SHIFT_DIVISOR), max(1, width // _SHIFT_DIVISOR)
    rows = np.arange(height) + generator.integers(2 * reach_y + 1, size=(count, 1))
    columns = np.arange(width) + generator.integers(2 * reach_x + 1, size=(count, 1))
    if how == "shift-mirror":
        mirrored = generator.random(count) < 0.5
        columns[mirrored] = columns[mirrored, ::-1]
    padded = functional.pad(images, (reach_x, reach_x, reach_y, reach_y), mode="replicate").movedim(1, -1)
    at_rows, at_columns = (torch.from_numpy(index).to(images.device) for index in (rows, columns))
    picked = padded[torch.arange(count, device=images.device)[:, None, None], at_rows[:, :, None], at_columns[:, None]]
    return picked.movedim(-1, 1)
