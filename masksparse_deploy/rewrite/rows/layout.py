"""Activations as rows, one for each position: where a position lies, and which rows the windows of a convolution read."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["CONSTANT", "PADDING", "RowLayout", "common_layout", "dense_layout", "window_rows"]

Indices = npt.NDArray[np.int64]

# What stands for a row in tables where there is none to be computed with: a masked position, a place outside the image.
CONSTANT = -1
PADDING = -2


@dataclass(frozen=True, eq=False, kw_only=True)
class RowLayout:
    """Which row of a tensor (batch, rows, channels) holds which position of an image.

    Attributes:
        rows: int64 (height, width), the row of each position; CONSTANT where it is masked.
        row_count: of the tensor, with the two below.
        constant_row: the row that all masked positions share; None if no position is masked.
        zero_row: a row of zeros, for what windows read outside the image; None if there is none.
    """

    rows: Indices
    row_count: int
    constant_row: int | None
    zero_row: int | None

    @property
    def is_complete(self) -> bool:
        """Whether every position has a row of its own."""
        return self.constant_row is None

    def filled(self, rows: Indices) -> Indices:
        """The same numbers of rows with CONSTANT and PADDING replaced by the rows that hold these."""
        if (rows == PADDING).any():
            assert self.zero_row is not None
        constant, zero = (-1 if row is None else row for row in (self.constant_row, self.zero_row))
        return np.where(rows == CONSTANT, constant, np.where(rows == PADDING, zero, rows))

    def in_memory_order(self) -> Indices:
        """The row of each position, image row by image row: what a Gather to a dense image takes."""
        return self.filled(self.rows.reshape(-1))


def dense_layout(height: int, width: int, *, with_zero: bool) -> RowLayout:
    """One row for each position in memory order, and a row of zeros behind them if asked for."""
    return _in_memory_order(np.ones((height, width), dtype=np.bool_), with_zero=with_zero)


def common_layout(layouts: Sequence[RowLayout]) -> RowLayout:
    """One that tensors in these layouts can be brought into, with a row of zeros; one of them if possible.

    Positions that are masked in all of them share a row, every other has one of its own.
    """
    own = np.any([layout.rows != CONSTANT for layout in layouts], axis=0)
    for layout in layouts:
        if layout.zero_row is not None and ((layout.rows != CONSTANT) == own).all():
            return layout
    return _in_memory_order(own, with_zero=True)


def _in_memory_order(own: npt.NDArray[np.bool_], *, with_zero: bool) -> RowLayout:
    """Positions that have a row of their own, bool (height, width), then a row for the others if there are any, then zeros."""
    count, is_masked = int(own.sum()), not own.all()
    rows = np.full(own.shape, CONSTANT, dtype=np.int64)
    rows[own] = np.arange(count)
    return RowLayout(
        rows=rows,
        row_count=count + is_masked + with_zero,
        constant_row=count if is_masked else None,
        zero_row=count + is_masked if with_zero else None,
    )


def window_rows(
    layout: RowLayout,
    positions: Indices,
    *,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
) -> Indices:
    """What the windows of a convolution read: int64 (positions, kernel_h * kernel_w), rows, CONSTANT or PADDING.

    Args:
        layout: of the convolution's input.
        positions: int64 (count, 2), height and width, of its output.
        kernel: height and width.
        strides: height and width.
        pads: top, left, bottom, right.
        dilations: height and width.
    """
    top, left, bottom, right = pads
    padded = np.pad(layout.rows, ((top, bottom), (left, right)), constant_values=PADDING)
    taps = [(y * dilations[0], x * dilations[1]) for y in range(kernel[0]) for x in range(kernel[1])]
    starts = positions * np.asarray(strides)
    return np.stack([padded[starts[:, 0] + y, starts[:, 1] + x] for y, x in taps], axis=1)
