"""One convolution as matrix products over gathered rows."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.rows.builder import RowBuilder
from masksparse_deploy.rewrite.rows.find import RowConvolution
from masksparse_deploy.rewrite.rows.grouping import Group, GroupCosts, Segment, plan_groups
from masksparse_deploy.rewrite.rows.layout import CONSTANT, RowLayout, window_rows
from masksparse_deploy.rewrite.rows.tensor import RowTensor, with_zero_row

__all__ = ["add_convolution"]

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]


def add_convolution(
    build: RowBuilder, found: RowConvolution, source: RowTensor, costs: GroupCosts, *, has_relu: bool = False
) -> RowTensor:
    """Compute the positions that are kept; behind them lie a row for those that are not, if there are any, and one of zeros.

    Args:
        build: where to.
        found: the convolution.
        source: what it reads.
        costs: what operators cost, for the choice of groups.
        has_relu: whether what is returned is behind a Relu.
    """
    if any(found.pads):
        source = with_zero_row(build, source)
    positions = np.argwhere(found.keep)
    windows = window_rows(
        source.layout, positions, kernel=found.kernel, strides=found.strides, pads=found.pads, dilations=found.dilations
    )
    if source.constant is None:
        windows = np.where(
            windows == CONSTANT, -1 if source.layout.constant_row is None else source.layout.constant_row, windows
        )
    segments = plan_groups(
        windows,
        kernel_width=found.kernel[1],
        in_channels=source.channels,
        out_channels=len(found.weight),
        costs=replace(costs, can_add=costs.can_add and build.can_add),
    )
    work = _Convolution(build, found, source, windows, has_relu)
    is_masked = len(positions) < found.keep.size
    order, value = work.whole(segments[0], is_masked) if len(segments) == 1 else work.added(segments, is_masked)
    rows = np.full(found.keep.shape, CONSTANT, dtype=np.int64)
    rows[tuple(positions[order].T)] = np.arange(len(order))
    layout = RowLayout(
        rows=rows,
        row_count=len(order) + is_masked + 1,
        constant_row=len(order) if is_masked else None,
        zero_row=len(order) + is_masked,
    )
    constant = work.activated(found.constant) if is_masked else None
    return RowTensor(value=value, layout=layout, channels=len(found.weight), constant=constant, image=source.image)


class _Convolution:
    """What the matrix products of one convolution have in common."""

    def __init__(self, build: RowBuilder, found: RowConvolution, source: RowTensor, windows: Indices, has_relu: bool) -> None:
        self.name = found.node.name or found.output.name or "convolution"
        self._build, self._found, self._source, self._windows = build, found, source, windows
        self._has_relu = has_relu
        # (taps, in_channels, out_channels)
        self._weight = found.weight.transpose(2, 3, 1, 0).reshape(windows.shape[1], source.channels, -1)

    def activated(self, rows: Floats) -> Floats:
        """What becomes of known rows behind the Relu, if there is one."""
        return np.maximum(rows, 0) if self._has_relu else rows

    def whole(self, segment: Segment, is_masked: bool) -> tuple[Indices, ir.Value]:
        """The products of groups over all taps behind one another, and the order that they bring the positions into."""
        computed, fixed = (
            [group for group in segment.groups if group.taps],
            [group for group in segment.groups if not group.taps],
        )
        parts = [self._product(group, segment, f"{self.name}.{index}") for index, group in enumerate(computed)]
        rows = [np.repeat(self._sums(group, segment)[None], len(group.members), axis=0) for group in fixed]
        rows += self._last_rows(is_masked)
        fixed_rows = self.activated(np.concatenate(rows))
        parts.append(self._build.fixed_rows(fixed_rows, self._source.image, f"{self.name}.fixed"))
        order = np.concatenate([group.members for group in (*computed, *fixed)])
        return order, self._build.concat(parts, f"{self.name}.stacked")

    def added(self, segments: Sequence[Segment], is_masked: bool) -> tuple[Indices, ir.Value]:
        """Rows of biases and of what is constant, to which the products of each segment's groups are added, in order."""
        count = len(self._windows)
        sums = np.tile(self._found.bias.astype(np.float64), (count, 1))
        products = []
        for segment in segments:
            for group in segment.groups:
                sums[group.members] += self._left_out(group, segment)
                if group.taps:
                    products.append((group.members, self._rows_read(group), self._weight_of(group)))
        start = np.concatenate([sums.astype(np.float32), *self._last_rows(is_masked)])
        value = self._build.added(start, products, self._source.value, self._source.image, self.name)
        if self._has_relu:
            value = self._build.add("Relu", [value], f"{self.name}.relu")
        return np.arange(count), value

    def _last_rows(self, is_masked: bool) -> list[Floats]:
        """What lies behind the rows of positions: what masked ones hold, and zeros."""
        zeros = np.zeros_like(self._found.constant)[None]
        return [self._found.constant[None], zeros] if is_masked else [zeros]

    def _product(self, group: Group, segment: Segment, name: str) -> ir.Value:
        sums, weight = self._sums(group, segment), self._weight_of(group)
        rows, read = self._source.value, self._rows_read(group)
        return self._build.product(rows, read, weight, sums, name, has_relu=self._has_relu)

    def _rows_read(self, group: Group) -> Indices:
        return self._source.layout.filled(self._windows[group.members][:, list(group.taps)])

    def _weight_of(self, group: Group) -> Floats:
        return self._weight[list(group.taps)].reshape(-1, len(self._found.bias))

    def _sums(self, group: Group, segment: Segment) -> Floats:
        """The bias and what the taps of the segment that the group leaves out add to it, rounded once."""
        return np.asarray(self._found.bias + self._left_out(group, segment), dtype=np.float32)

    def _left_out(self, group: Group, segment: Segment) -> npt.NDArray[np.float64]:
        """What the taps of the segment that the group leaves out add up to."""
        constant = [tap for tap in segment.taps if tap not in group.taps and self._windows[group.members[0], tap] == CONSTANT]
        if not constant:
            return np.zeros(len(self._found.bias))
        assert self._source.constant is not None, "only taps of a known constant are left out"
        row = self._source.constant.astype(np.float64)
        return np.asarray(sum(row @ self._weight[tap].astype(np.float64) for tap in constant))
