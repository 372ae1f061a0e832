"""The forms that a layer can take, each with the pass that brings it there."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import onnx
import onnx_ir as ir

from masksparse_deploy.core.artifacts.rewriting import LayerForm
from masksparse_deploy.rewrite.blocks.gather import gather_blocks, joined_size
from masksparse_deploy.rewrite.blocks.layout import GroupLayout, group_layout
from masksparse_deploy.rewrite.blocks.unread import leave_out_unread
from masksparse_deploy.rewrite.rows.grouping import WHOLE_WINDOWS, GroupCosts
from masksparse_deploy.rewrite.rows.transform import transform
from masksparse_deploy.rewrite.sites import Site

__all__ = ["DENSE", "Form", "forms_of", "gathered_positions", "rewritten"]

Transform = Callable[[ir.Model, Collection[str]], None]


@dataclass(frozen=True)
class Form:
    """One way of computing a layer; two are equal if name and variant are.

    Attributes:
        name: as the report has it.
        variant: what distinguishes forms of the same name, in words; "" for the plain one.
        computed_density: the share of the dense layer's multiply-accumulates that it computes.
        transform: the pass: brings the named layers of a model into this form.
        costs: of layers in rows, which are brought there together, what their groups are chosen by; None for other forms.
    """

    name: LayerForm
    variant: str = ""
    computed_density: float = field(default=1.0, compare=False)
    transform: Transform | None = field(default=None, compare=False)
    costs: GroupCosts | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name


DENSE = Form("dense")

# What one part gathers, so that it and its reordered copy stay in caches of usual size. Which is faster is measured.
_PART_BYTES = (2**21, 2**20)


def forms_of(site: Site, channel_block: int, positions: int = 0, *, can_add: bool = True) -> tuple[Form, ...]:
    """The forms, besides dense, that compute less than the dense layer; the one to expect most of comes last.

    Args:
        site: the layer; one with an obstacle has none.
        channel_block: channels that the runtime keeps together (core.channel_block).
        positions: how many of every channel are gathered in an inference; 0 if that is not known, for no forms
            in parts.
        can_add: whether the runtime adds rows to rows of a tensor, as the operator for that says.
    """
    if site.obstacle:
        return ()
    return (*_gathered(site, channel_block, positions), *_rows(site, can_add=can_add))


def _rows(site: Site, *, can_add: bool) -> tuple[Form, ...]:
    """Rows for masked positions; with products left out that are with constants, of which there are many behind another mask.

    How many depends on the layer before, so that the density is that of the layer's own mask, an upper bound.
    """
    if site.positions is None or site.layer.weight.dtype != np.float32 or not site.positions.keep.any():
        return ()
    density = float(site.positions.keep.mean())
    whole = Form(name="rows", computed_density=density, costs=WHOLE_WINDOWS)
    return (whole, replace(whole, variant="products with constants left out", costs=GroupCosts(can_add=can_add)))


def _gathered(site: Site, channel_block: int, positions: int) -> tuple[Form, ...]:
    if site.n is None:
        return ()
    weight = site.layer.weight
    variants: dict[tuple[int, ...], tuple[Form, GroupLayout]] = {}
    for multiple, smallest in ((1, 1), (channel_block, 1), (channel_block, channel_block)):
        size = joined_size(site.n, len(weight), smallest)
        layout = group_layout(weight, size, multiple=multiple)
        words = [f"{layout.channels.shape[1]} channels a group"] if multiple > 1 else []
        words += [f"groups of {size}"] if size > site.n else []
        form = Form(
            name="gathered",
            variant=", ".join(words),
            computed_density=layout.weight.size / weight.size,
            transform=partial(gather_blocks, multiple=multiple, smallest_group=smallest),
        )
        if form.computed_density < 1:
            variants.setdefault(layout.weight.shape[:2] + layout.channels.shape, (form, layout))
    if not variants:
        return ()
    *others, (best, layout) = variants.values()
    counts = {-(-layout.channels.size * positions * weight.itemsize // size) for size in _PART_BYTES}
    parts = (_in_parts(best, count) for count in sorted(counts) if 1 < count <= layout.group_count)
    return (*(form for form, _ in others), *parts, best)


def gathered_positions(site: Site, size: tuple[int, int, int], batch: int) -> int:
    """How many positions of every channel are gathered in an inference: of a strided 1x1 convolution those that it reads.

    Args:
        site: the layer.
        size: channels, height and width of its input.
        batch: images in an inference.
    """
    strides = site.layer.node.attributes.get("strides", (1, 1)) if site.layer.kernel_positions == 1 else (1, 1)
    height, width = (-(-length // stride) for length, stride in zip(size[1:], strides, strict=True))
    return int(batch * height * width)


def _in_parts(form: Form, count: int) -> Form:
    """A gathered form whose groups are computed in `count` parts."""
    assert isinstance(form.transform, partial)
    words = f"{form.variant}, in {count} parts" if form.variant else f"in {count} parts"
    return replace(form, variant=words, transform=partial(form.transform, part_count=count))


def rewritten(source: onnx.ModelProto, choice: Mapping[str, Form], *, unread_block: int | None = None) -> onnx.ModelProto:
    """The model with its layers in the chosen forms.

    Args:
        source: the sparse file.
        choice: by node name; layers that are not named stay.
        unread_block: leave output channels out that nobody reads, so that groups compute a multiple of it; None: compute all.
    """
    model = ir.from_proto(source)
    layers: dict[Form, list[str]] = {}
    for name, form in choice.items():
        layers.setdefault(form, []).append(name)
    for form, names in layers.items():
        if form.transform is not None:
            form.transform(model, names)
    rows = {name: form.costs for name, form in choice.items() if form.costs is not None}
    if rows:
        transform(model, rows)
    if unread_block is not None:
        known = {name for node in source.graph.node for name in node.output}
        leave_out_unread(model, known | {tensor.name for tensor in source.graph.initializer}, unread_block)
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if len(tensor.metadata_props) > 1:  # serializing repeats the properties of a tensor that was read; the last holds
            properties = {entry.key: entry.value for entry in tensor.metadata_props}
            tensor.ClearField("metadata_props")
            for key, value in sorted(properties.items()):
                tensor.metadata_props.add(key=key, value=value)
    return proto
