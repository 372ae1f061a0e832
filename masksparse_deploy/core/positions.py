"""Masks of output positions: which pixels of a convolution's output are computed, the same for all channels and samples."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.errors import ArtifactError
from masksparse_deploy.core.files import sha256_bytes

__all__ = ["PositionMask"]


@dataclass(frozen=True, eq=False, kw_only=True)
class PositionMask:
    """Which output positions of one convolution are computed (Grimaldi et al. 2023).

    A dropped position holds the convolution's own bias, or 0 without one: the sum over its inputs is left out. Batch norm
    behind it makes a constant of each channel from that.

    Attributes:
        layer: the module's name, as "layer1.0.conv1".
        keep: bool (height, width) of the convolution's output; at least one position is kept.
    """

    layer: str
    keep: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.keep.dtype != np.bool_ or self.keep.ndim != 2:
            raise ArtifactError(f"position mask of {self.layer}: {self.keep.dtype} {self.keep.shape}, not bool (height, width)")
        if not self.keep.any():
            raise ArtifactError(f"position mask of {self.layer}: it keeps no position of {self.keep.shape}")
        copy = np.array(self.keep, order="C", copy=True)
        copy.setflags(write=False)
        object.__setattr__(self, "keep", copy)

    @property
    def density(self) -> float:
        """The share of positions that is computed."""
        return float(np.count_nonzero(self.keep) / self.keep.size)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of layer, shape and kept positions."""
        return sha256_bytes(f"{self.layer}|{self.keep.shape}|".encode() + np.packbits(self.keep).tobytes())
