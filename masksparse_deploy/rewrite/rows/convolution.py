"""One convolution as matrix products over gathered rows."""

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


def add_convolution(build: RowBuilder, found: RowConvolution, source: RowTensor, costs: GroupCosts) -> RowTensor:
    """Compute the positions that are kept; behind them lie a row for those that are not, if there are any, and one of zeros."""
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
        costs=costs,
    )
    work = _Convolution(build, found, source, windows)
    is_masked = len(positions) < found.keep.size
    order, value = work.first(segments[0], is_masked)
    if len(segments) > 1:
        further = [
            work.further(segment, order, 1 + is_masked, f"{work.name}.{number}")
            for number, segment in enumerate(segments[1:], start=1)
        ]
        value = build.add("Sum", [value, *further], f"{work.name}.sum")
    rows = np.full(found.keep.shape, CONSTANT, dtype=np.int64)
    rows[tuple(positions[order].T)] = np.arange(len(order))
    layout = RowLayout(
        rows=rows,
        row_count=len(order) + is_masked + 1,
        constant_row=len(order) if is_masked else None,
        zero_row=len(order) + is_masked,
    )
    constant = found.constant if is_masked else None
    return RowTensor(value=value, layout=layout, channels=len(found.weight), constant=constant, image=source.image)


class _Convolution:
    """What the matrix products of one convolution have in common."""

    def __init__(self, build: RowBuilder, found: RowConvolution, source: RowTensor, windows: Indices) -> None:
        self.name = found.node.name or found.output.name or "convolution"
        self._build, self._found, self._source, self._windows = build, found, source, windows
        # (taps, in_channels, out_channels)
        self._weight = found.weight.transpose(2, 3, 1, 0).reshape(windows.shape[1], source.channels, -1)

    def first(self, segment: Segment, is_masked: bool) -> tuple[Indices, ir.Value]:
        """The sums of the first segment, bias included, and the order that they bring the positions into."""
        bias = self._found.bias
        computed, fixed = _by_work(segment)
        rows = [np.repeat(self._bias(group, segment, bias)[None], len(group.members), axis=0) for group in fixed]
        rows += [self._found.constant[None]] if is_masked else []
        order = np.concatenate([group.members for group in (*computed, *fixed)])
        return order, self._stacked(segment, bias, rows, f"{self.name}.0")

    def further(self, segment: Segment, order: Indices, tail: int, name: str) -> ir.Value:
        """The sums of another segment in that order, with `tail` rows of zeros behind them."""
        computed, fixed = _by_work(segment)
        bias = np.zeros_like(self._found.bias)
        place, count = np.empty(len(order), dtype=np.int64), 0
        for group in computed:
            place[group.members] = np.arange(count, count + len(group.members))
            count += len(group.members)
        for group in fixed:
            place[group.members] = count
            count += 1
        stacked = self._stacked(segment, bias, [self._bias(group, segment, bias)[None] for group in fixed], name)
        indices = np.concatenate([place[order], np.full(tail, count)])
        return self._build.gather(stacked, indices, f"{name}.order")

    def _stacked(self, segment: Segment, bias: Floats, fixed: list[Floats], name: str) -> ir.Value:
        """The products of the groups, then the fixed rows, then a row of zeros."""
        computed, _ = _by_work(segment)
        parts = [self._product(group, segment, bias, f"{name}.{index}") for index, group in enumerate(computed)]
        zeros = np.zeros((1, len(bias)), dtype=np.float32)
        parts.append(self._build.fixed_rows(np.concatenate([*fixed, zeros]), self._source.image, f"{name}.fixed"))
        return self._build.concat(parts, f"{name}.rows")

    def _product(self, group: Group, segment: Segment, bias: Floats, name: str) -> ir.Value:
        taps = list(group.taps)
        indices = self._source.layout.filled(self._windows[group.members][:, taps])
        weight = self._weight[taps].reshape(-1, len(bias))
        return self._build.product(self._source.value, indices, weight, self._bias(group, segment, bias), name)

    def _bias(self, group: Group, segment: Segment, bias: Floats) -> Floats:
        """The bias and what the taps of the segment that the group leaves out add to it, rounded once."""
        constant = [tap for tap in segment.taps if tap not in group.taps and self._windows[group.members[0], tap] == CONSTANT]
        if not constant:
            return bias
        assert self._source.constant is not None, "only taps of a known constant are left out"
        row = self._source.constant.astype(np.float64)
        total = bias.astype(np.float64) + sum(row @ self._weight[tap].astype(np.float64) for tap in constant)
        return np.asarray(total, dtype=np.float32)


def _by_work(segment: Segment) -> tuple[list[Group], list[Group]]:
    """Groups with a product, and those without."""
    return [group for group in segment.groups if group.taps], [group for group in segment.groups if not group.taps]
