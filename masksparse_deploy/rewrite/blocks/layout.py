"""A 1xN weight as a grouped convolution over gathered channels: which channels every group reads, and with which weights."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from masksparse_deploy.graph.nonzeros import nonzero_places

__all__ = ["GroupLayout", "block_size_of", "group_layout"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class GroupLayout:
    """A convolution as groups that read channels of their own.

    Attributes:
        channels: int64 (groups, R), ascending in a group: the input channels that the group reads.
        weight: (out_channels, R, kernel_h, kernel_w), those columns of the dense weight, in its dtype.
    """

    channels: npt.NDArray[np.int64]
    weight: Array

    @property
    def group_count(self) -> int:
        """How many groups."""
        return len(self.channels)


def block_size_of(weight: Array) -> int | None:
    """The largest N, at least 2, for which a weight without annotation is 1xN: every N output channels use the same inputs.

    Args:
        weight: (out_channels, in_channels, kernel_h, kernel_w).

    Returns:
        N; None if there is none, or if every output channel uses all inputs.
    """
    used = np.asarray(nonzero_places(weight).any(axis=tuple(range(2, weight.ndim))))
    if used.all():
        return None
    # Groups of N are uniform exactly where no change between neighbours lies inside a group.
    changes = np.flatnonzero((used[1:] != used[:-1]).any(axis=1)) + 1
    size = math.gcd(len(used), *changes.tolist())
    return size if size > 1 else None


def group_layout(weight: Array, n: int, *, multiple: int = 1) -> GroupLayout:
    """Bring a 1xN weight into groups of N output channels that all read equally many channels.

    Groups that need fewer channels than the largest one, and the filling up to a multiple, read channels for which their
    weights are zero, so that the function stays exactly the same.

    Args:
        weight: (out_channels, in_channels, kernel_h, kernel_w); N divides out_channels.
        n: output channels of a group.
        multiple: R is rounded up to a multiple of it, or to all channels where there are not so many.
    """
    out_channels, in_channels = weight.shape[:2]
    used = nonzero_places(weight).reshape(out_channels // n, n, in_channels, -1).any(axis=(1, 3))
    largest = max(int(used.sum(axis=1).max()), 1)
    kept = min(-(-largest // multiple) * multiple, in_channels)
    # stable: used channels first, then those of other groups, which are read anyway, then the rest, each in their order
    rank = 2 * ~used + ~used.any(axis=0)
    channels = np.sort(np.argsort(rank, axis=1, kind="stable")[:, :kept], axis=1).astype(np.int64)
    parts = [weight[group * n : (group + 1) * n, chosen] for group, chosen in enumerate(channels)]
    return GroupLayout(channels=channels, weight=np.ascontiguousarray(np.concatenate(parts)))
