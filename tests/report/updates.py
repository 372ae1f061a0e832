"""The report of an update, in small."""

from typing import Any

from masksparse_deploy.core.artifacts.updating import (
    ComparedClaim,
    Comparison,
    LayerBudget,
    MaskFit,
    UpdatedLayer,
    UpdateReport,
)
from tests.report.made_up import digest


def make_layer(name: str, **changes: Any) -> UpdatedLayer:
    budget = LayerBudget(spread=1, layerwise_limit=1.1, layerwise=0.05, end_to_end=0.01, end_to_end_offset=0.001)
    values: dict[str, Any] = {
        "layer": name,
        "node": f"node_{name}",
        "weight_norm": 4.0,
        "dense_update": 0.02,
        "sparse_update": 0.015,
        "difference_update": 0.01,
        "offset_update": 0.0,
        "removed_norm_old": 1.0,
        "removed_norm_new": 1.005,
        "removed_norm_sum": 1.01,
        "removed_norm_frobenius": 1.03,
        "difference_norm_old": 1.0,
        "difference_norm_new": 1.005,
        "budget": budget,
        "next_budget": budget,
        "within_layerwise": True,
        "within_end_to_end": False,
    }
    return UpdatedLayer(**{**values, **changes})


def make_fit(layer: str, norm: float, before: float | None = 0.99) -> MaskFit:
    return MaskFit(
        layer=layer,
        pattern="2:4",
        norm=norm,
        magnitude=norm,
        norm_before=before,
        magnitude_before=before,
        aged=None if before is None else before - norm > 0.02,
    )


def make_update(**changes: Any) -> UpdateReport:
    """Within the layerwise budget of its one layer, beyond the end-to-end budget; the masks are young."""
    claim = ComparedClaim(name="end-to-end, data-free", direct=30.0, triangle=25.0, measured=2.0)
    comparisons = tuple(
        Comparison(
            against=against,
            certificate=f"{against}.json",
            certificate_sha256=digest(against),
            layerwise=1.005,
            layerwise_measured=0.5,
            claims=(claim,),
        )
        for against in ("dense, new weights", "masked, old weights", "dense, old weights")
    )
    values: dict[str, Any] = {
        **{
            f"{what}_{when}_sha256": digest(f"{what} {when}")
            for what in ("dense", "sparse", "masks")
            for when in ("old", "new")
        },
        "data_sha256": digest("data"),
        "statistics": "re-estimated",
        "remarks": (),
        "comparisons": comparisons,
        "growth": 0.1,
        "radius": 10.0,
        "end_to_end_old": 28.0,
        "end_to_end_limit": 30.8,
        "end_to_end_share": 0.0025,
        "end_to_end_new": 30.0,
        "other_changes": (),
        "grown": (),
        "within_layerwise": True,
        "within_end_to_end": False,
        "layers": (make_layer("blocks.0"),),
        "masks": (make_fit("blocks.0", 0.985), make_fit("the network", 0.985)),
        "relearn_points": 2.0,
        "relearn": False,
        "advice": "The masks need not be learned again.",
        "dense_correct_old": 95,
        "sparse_correct_old": 94,
        "dense_correct_new": 96,
        "sparse_correct_new": 93,
        "sample_count": 100,
    }
    return UpdateReport(**{**values, **changes})
