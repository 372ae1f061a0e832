"""The forms that a layer can take, each with the pass that brings it there."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from functools import partial

import onnx
import onnx_ir as ir

from masksparse_deploy.core.artifacts.rewriting import LayerForm
from masksparse_deploy.rewrite.blocks.gather import gather_blocks, joined_size
from masksparse_deploy.rewrite.blocks.layout import group_layout
from masksparse_deploy.rewrite.sites import Site

__all__ = ["DENSE", "Form", "forms_of", "rewritten"]

Transform = Callable[[ir.Model, Collection[str]], None]


@dataclass(frozen=True)
class Form:
    """One way of computing a layer; two are equal if name and variant are.

    Attributes:
        name: as the report has it.
        variant: what distinguishes forms of the same name, in words; "" for the plain one.
        computed_density: the share of the dense layer's multiply-accumulates that it computes.
        transform: the pass: brings the named layers of a model into this form.
    """

    name: LayerForm
    variant: str = ""
    computed_density: float = field(default=1.0, compare=False)
    transform: Transform | None = field(default=None, compare=False)

    def __str__(self) -> str:
        return f"{self.name}, {self.variant}" if self.variant else self.name


DENSE = Form("dense")


def forms_of(site: Site, channel_block: int) -> tuple[Form, ...]:
    """The forms, besides dense, that compute less than the dense layer; the one to expect most of comes last.

    Args:
        site: the layer; one with an obstacle has none.
        channel_block: channels that the runtime keeps together (core.channel_block).
    """
    if site.obstacle or site.n is None:
        return ()
    weight = site.layer.weight
    variants: dict[tuple[int, ...], Form] = {}
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
            variants.setdefault(layout.weight.shape[:2] + layout.channels.shape, form)
    return tuple(variants.values())


def rewritten(source: onnx.ModelProto, choice: Mapping[str, Form]) -> onnx.ModelProto:
    """The model with its layers in the chosen forms, by node name; layers that are not named stay."""
    model = ir.from_proto(source)
    layers: dict[Form, list[str]] = {}
    for name, form in choice.items():
        layers.setdefault(form, []).append(name)
    for form, names in layers.items():
        if form.transform is not None:
            form.transform(model, names)
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        if len(tensor.metadata_props) > 1:  # serializing repeats the properties of a tensor that was read; the last holds
            properties = {entry.key: entry.value for entry in tensor.metadata_props}
            tensor.ClearField("metadata_props")
            for key, value in sorted(properties.items()):
                tensor.metadata_props.add(key=key, value=value)
    return proto
