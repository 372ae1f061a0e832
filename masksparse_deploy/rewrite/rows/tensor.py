"""A tensor of rows with what is known of it, and its change from one layout to another."""

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from masksparse_deploy.rewrite.rows.builder import RowBuilder
from masksparse_deploy.rewrite.rows.layout import CONSTANT, RowLayout, dense_layout

__all__ = ["RowTensor", "from_images", "rearranged", "to_images", "with_zero_row"]


@dataclass(frozen=True, eq=False, kw_only=True)
class RowTensor:
    """Activations as rows.

    Attributes:
        value: the tensor (batch, rows, channels).
        layout: which row holds which position.
        channels: how many.
        constant: float32 (channels,), what the constant row holds; None if there is none, or if runtimes may differ in it.
        image: images of as many samples.
    """

    value: ir.Value
    layout: RowLayout
    channels: int
    constant: npt.NDArray[np.float32] | None
    image: ir.Value


def from_images(build: RowBuilder, value: ir.Value) -> RowTensor:
    """Images (batch, channels, height, width) as rows, with a row of zeros."""
    assert value.shape is not None
    _, channels, height, width = value.shape
    assert isinstance(channels, int) and isinstance(height, int) and isinstance(width, int), "no obstacle was found before"
    rows = build.from_images(value, height * width, f"{value.name}.rows")
    layout = dense_layout(height, width, with_zero=False)
    return with_zero_row(build, RowTensor(value=rows, layout=layout, channels=channels, constant=None, image=value))


def with_zero_row(build: RowBuilder, rows: RowTensor) -> RowTensor:
    """The same with a row of zeros."""
    if rows.layout.zero_row is not None:
        return rows
    zeros = build.fixed_rows(np.zeros((1, rows.channels), dtype=np.float32), rows.image, f"zero_row.{rows.channels}")
    value = build.concat([rows.value, zeros], f"{rows.value.name}.padded")
    layout = replace(rows.layout, row_count=rows.layout.row_count + 1, zero_row=rows.layout.row_count)
    return replace(rows, value=value, layout=layout)


def rearranged(build: RowBuilder, rows: RowTensor, layout: RowLayout) -> RowTensor:
    """The same activations in another layout, with a row of zeros; what is masked there is masked here too."""
    if layout is rows.layout:
        return rows
    assert layout.zero_row is not None
    rows = with_zero_row(build, rows)
    assert rows.layout.zero_row is not None
    indices = np.empty(layout.row_count, dtype=np.int64)
    own = layout.rows != CONSTANT
    indices[layout.rows[own]] = rows.layout.filled(rows.layout.rows[own])
    indices[layout.zero_row] = rows.layout.zero_row
    if layout.constant_row is not None:
        assert rows.layout.constant_row is not None and (rows.layout.rows[~own] == CONSTANT).all()
        indices[layout.constant_row] = rows.layout.constant_row
    value = build.gather(rows.value, indices, f"{rows.value.name}.spread")
    return replace(rows, value=value, layout=layout, constant=None if layout.is_complete else rows.constant)


def to_images(build: RowBuilder, rows: RowTensor, name: str) -> ir.Value:
    """Rows as images (batch, channels, height, width)."""
    order = rows.layout.in_memory_order()
    value = rows.value
    if len(order) != rows.layout.row_count or (np.diff(order) != 1).any():
        value = build.gather(value, order, f"{name}.in_memory_order")
    height, width = rows.layout.rows.shape
    return build.to_images(value, (height, width), name)
