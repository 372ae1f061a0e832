"""What an update leaves guaranteed: certificates of the new network against the old ones, budgets, and the age of the masks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from masksparse_deploy.certify.layers import known_shapes
from masksparse_deploy.certify.norms.store import NormStore
from masksparse_deploy.certify.operator_norm import NormCache
from masksparse_deploy.certify.pairing import Pair, read_pair
from masksparse_deploy.certify.recursion import propagate
from masksparse_deploy.certify.run import ball_radius
from masksparse_deploy.certify.update import (
    Budgets,
    LayerPair,
    LayerUpdate,
    find_budgets,
    layer_pairs,
    other_changes,
    removed_change,
)
from masksparse_deploy.core.artifacts.certificate import LAYERWISE, Certificate, LayerBound
from masksparse_deploy.core.artifacts.updating import ComparedClaim, Comparison, MaskFit, UpdatedLayer
from masksparse_deploy.core.progress import Progress, silent
from masksparse_deploy.core.samples import Samples
from masksparse_deploy.graph.evaluate import unsupported_operators
from masksparse_deploy.pipeline.norms import available_deficits

__all__ = [
    "Certified",
    "advice",
    "changed_operators",
    "compare",
    "grown_layers",
    "is_within_end_to_end",
    "is_within_layerwise",
    "updated_layers",
]

_NAMED = 3
# S(R) + S(R' - R) is at least S(R'); float64 may say otherwise by less than this.
_SUM = 1 + 1e-9


@dataclass(frozen=True, eq=False)
class Certified:
    """A folder with dense.onnx, sparse.onnx and the certificate of the two, and samples to take norms and shapes from."""

    folder: Path
    samples: Samples
    growth: float
    progress: Progress = silent

    @cached_property
    def certificate(self) -> Certificate:
        """The certificate of the two files."""
        return Certificate.read(self.folder / "certificate.json")

    @cached_property
    def pair(self) -> Pair:
        """The two graphs."""
        return read_pair(self.folder / "dense.onnx", self.folder / "sparse.onnx")

    @cached_property
    def norms(self) -> NormCache:
        """Norms, those of the certificate known already."""
        store = NormStore(self.folder / "certificate.norms.json")
        return NormCache(grid=self.certificate.grid, store=store, deficits=available_deficits())

    @cached_property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Of all variable tensors, without the batch; of those that the file tells where an operator cannot be evaluated."""
        if unsupported_operators(self.pair.dense):
            return known_shapes(self.pair.dense)
        return propagate(self.pair, self.samples.first(1).images, self.norms, progress=silent).shapes

    @cached_property
    def layers(self) -> Mapping[str, LayerPair]:
        """The layers with constant weights, by the name of their output."""
        return layer_pairs(self.pair, self.shapes)

    @cached_property
    def bounds(self) -> Mapping[str, LayerBound]:
        """The certificate's bounds, by the name of the node."""
        return {layer.node: layer for layer in self.certificate.layers}

    @cached_property
    def radius(self) -> float:
        """Of the ball of inputs that the data-free claim is about."""
        return ball_radius(self.samples)

    @cached_property
    def budgets(self) -> Budgets:
        """How far layers may move within the growth that is allowed."""
        self.progress("finding budgets", 0, 1)
        return find_budgets(
            self.pair,
            difference_norms={name: bound.difference_norm for name, bound in self.bounds.items()},
            growth=self.growth,
            radius=self.radius,
            shapes=self.shapes,
            norms=self.norms,
        )


def updated_layers(old: Certified, new: Certified) -> tuple[UpdatedLayer, ...]:
    """What the update did to every layer, held against the old budget, and the budget from here on."""
    return tuple(_updated_layer(name, old, new) for name in old.layers)


def _updated_layer(name: str, old: Certified, new: Certified) -> UpdatedLayer:
    before, after = old.layers[name], new.layers[name]
    node = before.node
    update = LayerUpdate.between(before, after)
    budget = old.budgets.layers[name]
    offset_budget = budget.end_to_end_offset
    total = frobenius = None
    if node.name in old.bounds and node.name in new.bounds:
        start = old.bounds[node.name].removed_norm
        added = removed_change(before, after, tuple(old.shapes[node.inputs[0]]), new.norms)
        total, frobenius = ((start + more) * _SUM for more in added)
    return UpdatedLayer(
        layer=old.pair.stored_names.get(name, node.name).removesuffix(".weight"),
        node=node.name,
        weight_norm=LayerUpdate.size(before.dense),
        dense_update=update.dense,
        sparse_update=update.sparse,
        difference_update=update.difference,
        offset_update=max(update.dense_offset, update.sparse_offset),
        removed_norm_old=_removed(old, node.name),
        removed_norm_new=_removed(new, node.name),
        removed_norm_sum=total,
        removed_norm_frobenius=frobenius,
        difference_norm_old=_difference(old, node.name),
        difference_norm_new=_difference(new, node.name),
        budget=budget,
        next_budget=new.budgets.layers[name],
        within_layerwise=update.within_layerwise(budget, before, growth=old.growth),
        within_end_to_end=(
            None
            if budget.end_to_end is None or offset_budget is None
            else update.within(budget.end_to_end, offset_budget, before)
        ),
    )


def _removed(certified: Certified, node: str) -> float | None:
    return certified.bounds[node].removed_norm if node in certified.bounds else None


def _difference(certified: Certified, node: str) -> float | None:
    return certified.bounds[node].difference_norm if node in certified.bounds else None


def grown_layers(layers: Sequence[UpdatedLayer], *, growth: float) -> tuple[str, ...]:
    """Layers whose bound, computed anew, is more than the share `growth` above the old one; without one, nothing differs."""
    return tuple(
        layer.layer
        for layer in layers
        if (layer.difference_norm_new or 0.0) > (1 + growth) * (layer.difference_norm_old or 0.0)
    )


def is_within_layerwise(layers: Sequence[UpdatedLayer], others: Sequence[str], old: Certified, new: Certified) -> bool:
    """Whether every layer kept its budget, and no layer that a certificate bounds changed without having one."""
    uncovered = {name.partition(" ")[2] for name in others} & {*old.bounds, *new.bounds}
    return all(layer.within_layerwise for layer in layers) and not uncovered


def is_within_end_to_end(layers: Sequence[UpdatedLayer], others: Sequence[str]) -> bool | None:
    """Whether every layer kept its budget and nothing else changed; None where there is no budget."""
    answers = [layer.within_end_to_end for layer in layers]
    return None if not answers or None in answers else all(answers) and not others


def changed_operators(old: Certified, new: Certified) -> tuple[str, ...]:
    """Operators without a budget whose constants the update changed."""
    return other_changes(old.pair, new.pair, old.layers)


def compare(against: str, path: Path, *, first: Certificate | None = None, second: Certificate | None = None) -> Comparison:
    """What a certificate says of the new masked network against another one, and what two others say by way of a third.

    Args:
        against: the other network, as `Comparison.against`.
        path: the certificate of the two.
        first: of a network between them and the new masked one.
        second: of that network and the other one.
    """
    certificate = Certificate.read(path)
    claims = {claim.name: claim for claim in certificate.claims}
    layerwise = claims.pop(LAYERWISE)
    return Comparison.model_validate(
        {
            "against": against,
            "certificate": path.name,
            "certificate_sha256": certificate.digest,
            "layerwise": layerwise.bound,
            "layerwise_measured": layerwise.measured,
            "claims": tuple(
                ComparedClaim(
                    name=name,
                    direct=claim.bound,
                    triangle=_by_triangle(name, first, second),
                    measured=claim.measured,
                )
                for name, claim in claims.items()
            ),
        }
    )


def _by_triangle(name: str, first: Certificate | None, second: Certificate | None) -> float | None:
    """||a - c|| <= ||a - b|| + ||b - c||: for the same samples the largest is at most the sum of the largest."""
    if first is None or second is None or first.data_sha256 != second.data_sha256:
        return None
    one, other = (next(claim for claim in certificate.claims if claim.name == name) for certificate in (first, second))
    if one.bound is None or other.bound is None or one.sample_count != other.sample_count:
        return None
    return (one.bound + other.bound) * _SUM


def advice(masks: Sequence[MaskFit], *, points: float) -> tuple[bool | None, str]:
    """Whether to learn the masks again, and a sentence that says why."""
    *layers, network = masks
    kept = f"they keep {network.norm:.1%} of the norm that the best {network.pattern} masks would keep of the new weights"
    if network.norm_before is None:
        return None, f"Whether the masks have aged cannot be told, as the checkpoint they were made for is gone; {kept}."
    fall = f"{network.norm_before:.1%} of the old ones"
    aged = sorted((layer for layer in layers if layer.aged), key=lambda layer: layer.norm - (layer.norm_before or 0.0))
    if not aged and not network.aged:
        return False, f"The masks need not be learned again: {kept}, {fall}; no layer fell by more than {points:g} points."
    named = ", ".join(layer.layer for layer in aged[:_NAMED]) + (
        f" and {len(aged) - _NAMED} more" if len(aged) > _NAMED else ""
    )
    where = f"; more than {points:g} points were lost in {named}" if aged else ""
    return True, f"Learn the masks again: {kept}, {fall}{where}."
