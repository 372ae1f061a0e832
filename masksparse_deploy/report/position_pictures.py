"""Small pictures of which output positions are computed, one for each mask that is there."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from masksparse_deploy.core.artifacts.baking import BakedPositions

__all__ = ["PositionPicture", "position_pictures"]

# Larger masks would be grey anyway, and their paths long.
_LARGEST = 256


@dataclass(frozen=True)
class PositionPicture:
    """One mask: its size, what it keeps, the layers that have it, and the kept positions as the path of an SVG.

    Attributes:
        layers: names, in the order of the network.
        height: in positions, one unit of the path each.
        width: likewise.
        kept_count: how many positions are computed.
        path: the runs of kept positions of each row, as rectangles; "" for masks too large to draw.
    """

    layers: tuple[str, ...]
    height: int
    width: int
    kept_count: int
    path: str

    @property
    def description(self) -> str:
        """In words, for those who do not see it."""
        return f"{self.kept_count:,} of {self.height} x {self.width} positions are computed"


def position_pictures(rows: tuple[BakedPositions, ...]) -> tuple[PositionPicture, ...]:
    """A picture of each mask, those of several layers once, in the order of the network."""
    layers: dict[tuple[int, int, int, str], list[str]] = {}
    for row in rows:
        layers.setdefault((row.height, row.width, row.kept_count, row.keep), []).append(row.layer)
    return tuple(
        PositionPicture(tuple(dict.fromkeys(names)), height, width, count, _path(keep, height, width))
        for (height, width, count, keep), names in layers.items()
    )


def _path(keep: str, height: int, width: int) -> str:
    if max(height, width) > _LARGEST:
        return ""
    packed = np.frombuffer(bytes.fromhex(keep), dtype=np.uint8)
    mask = np.unpackbits(packed, count=height * width).reshape(height, width)
    return "".join(f"M{start} {y}h{stop - start}v1H{start}z" for y, row in enumerate(mask) for start, stop in _runs(row))


def _runs(row: npt.NDArray[np.uint8]) -> Iterator[tuple[int, int]]:
    """Where runs of ones start and stop."""
    edges = np.diff(np.concatenate([[0], row.astype(np.int8), [0]]))
    yield from zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)
