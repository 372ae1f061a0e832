"""What the report of learning says about positions that are left out."""

from collections.abc import Iterable

from torch import nn

from masksparse_deploy.core.artifacts.learning import PositionedLayer
from masksparse_deploy.learn.eligibility import LayerSurvey
from masksparse_deploy.learn.positions.survey import PositionSurvey
from masksparse_deploy.learn.probe import Probe, weight_layers
from masksparse_deploy.learn.sparsifier import Outcome

__all__ = ["positioned_layers", "remaining_mac_count", "unmasked_weights"]


def positioned_layers(survey: PositionSurvey, outcome: Outcome) -> tuple[PositionedLayer, ...]:
    """The layers that leave positions out, in the order of the network's modules."""
    return tuple(
        PositionedLayer(
            name=layer.name,
            height=layer.size[0],
            width=layer.size[1],
            density=outcome.positions[layer.name].density,
            mac_count=layer.mac_count,
            mask_sha256=outcome.positions[layer.name].digest,
        )
        for layer in survey.layers
    )


def remaining_mac_count(mac_counts: dict[str, int], positioned: Iterable[PositionedLayer]) -> int:
    """The multiply-accumulates of all layers, given those that their weights leave, at the positions that are computed."""
    density = {layer.name: layer.density for layer in positioned}
    # A whole number: the counts are a multiple of the positions.
    return round(sum(count * density.get(name, 1.0) for name, count in mac_counts.items()))


def unmasked_weights(model: nn.Module, probe: Probe, positions: PositionSurvey) -> LayerSurvey:
    """The survey of a network whose weights are not masked: what is skipped has masks neither of weights nor of positions."""
    layers = weight_layers(model).values()
    return LayerSurvey(
        eligible=(),
        skipped=positions.skipped,
        convolution_count=sum(not isinstance(module, nn.Linear) for module in layers),
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        mac_count=sum(probe.mac_counts.values()),
    )
