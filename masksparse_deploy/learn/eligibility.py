"""Which layers may carry a mask, and why the others stay dense."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from masksparse_deploy.core.any_pattern import Pattern
from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.blocks import BlockPattern
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.block_obstacle import block_choice, block_obstacle
from masksparse_deploy.learn.probe import Probe, WeightLayer, weight_layers

__all__ = ["GROUP_AXIS", "EligibleLayer", "LayerSurvey", "obstacles", "shared_weights", "survey_layers"]

# Input channels: axis 1 of (out_channels, in_channels, kernel_h, kernel_w) and of (out_features, in_features).
GROUP_AXIS = 1
_EVERYTHING = "*"


@dataclass(frozen=True, kw_only=True)
class EligibleLayer:
    """A layer that will carry a mask; `mac_count` is for one image, zeros included."""

    name: str
    weight_name: str
    shape: tuple[int, ...]
    weight_count: int
    mac_count: int
    is_convolution: bool

    def saved_mac_count(self, pattern: Pattern) -> int:
        """The multiply-accumulates that a sparse kernel leaves out at most; those with padded channels are not left out."""
        channels = self.shape[GROUP_AXIS]
        if isinstance(pattern, BlockPattern):
            count = self.shape[0] // pattern.n * channels
            return self.mac_count // count * (count - pattern.kept_blocks(self.shape[0], channels))
        return self.mac_count // channels * _saved_channels(channels, pattern)


@dataclass(frozen=True, kw_only=True)
class LayerSurvey:
    """All layers with weights, in the order of the network's modules.

    `convolution_count` and `mac_count` are over all of them, `parameter_count` over the whole network.
    """

    eligible: tuple[EligibleLayer, ...]
    skipped: tuple[SkippedLayer, ...]
    convolution_count: int
    parameter_count: int
    mac_count: int


def survey_layers(
    model: nn.Module,
    probe: Probe,
    *,
    pattern: Pattern,
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    pad_channels: bool = False,
) -> LayerSurvey:
    """Sort the layers into eligible ones and skipped ones with reasons.

    A convolution is eligible if it is 2-d, not transposed, has one group and `in_channels % M == 0`. A linear layer also
    needs `in_features % M == 0`, and a glob in `include` other than "*" that matches it. With `pad_channels` other counts of
    channels do as well if the padded layer has fewer weights left to multiply by than the dense one; with fewer than M
    channels, as images have, only where a glob other than "*" matches: there is little to save and much to lose.

    A transposable pattern needs its multiples along the output channels too, and no channels are added for it.

    A 1xN pattern needs `out_channels % N == 0`, and a share that prunes some of the input channels, rounded. Where no glob
    other than "*" names them, it also leaves dense the first convolution, and strided 1x1 convolutions in networks that have
    no other 1x1 convolutions: those of the shortcuts of ResNet-18 and 34, which cost little and through which all passes.

    Args:
        model: the network.
        probe: what `probe_model` found.
        pattern: N:M or 1xN.
        include: globs over layer names.
        exclude: globs over layer names; wins over `include`.
        pad_channels: channels of zeros may be added in the ONNX file.

    Raises:
        UsageError: a glob matches no layer, a layer named without wildcards is not eligible, no layer is eligible, or
            channels shall be added for a transposable pattern.
    """
    if pad_channels and isinstance(pattern, NMPattern) and pattern.transposable:
        raise UsageError(
            f"mask.pad_channels fills groups of input channels, and a {pattern} mask needs whole tiles of {pattern.m} x "
            f"{pattern.m} channels; remove it (layers without whole tiles stay dense), or use mask.pattern "
            f"{replace(pattern, transposable=False)} with another method than transposable"
        )
    layers = weight_layers(model)
    for option, globs in (("include", include), ("exclude", exclude)):
        for glob in globs:
            check_glob(f"mask.{option}", glob, tuple(layers))
    shared = shared_weights(model)
    eligible: list[EligibleLayer] = []
    skipped: list[SkippedLayer] = []
    for name, module in layers.items():
        weight_count, mac_count = module.weight.numel(), probe.mac_counts.get(name, 0)
        obstacle = _obstacle(name, module, probe, shared, pattern, pad_channels)
        paddable = obstacle is not None and _obstacle(name, module, probe, shared, pattern, True) is None
        excluded = next((glob for glob in exclude if fnmatchcase(name, glob)), None)
        if obstacle and name in include and excluded is None:
            remedy = "remove it, or set mask.pad_channels: true" if paddable else "remove it"
            raise UsageError(f"mask.include names {name}, which cannot carry a {pattern} mask: {obstacle}; {remedy}")
        if obstacle and paddable and isinstance(pattern, NMPattern) and _input_channels(module) > pattern.m:
            obstacle += " (set mask.pad_channels to mask it)"
        reason = obstacle or _choice(name, module, include, excluded, pattern)
        if reason is None and isinstance(pattern, BlockPattern) and not _is_named(name, include):
            reason = block_choice(name, layers, probe)
        if reason:
            skipped.append(SkippedLayer(name=name, reason=reason, weight_count=weight_count, mac_count=mac_count))
            continue
        eligible.append(
            EligibleLayer(
                name=name,
                weight_name=f"{name}.weight" if name else "weight",
                shape=tuple(module.weight.shape),
                weight_count=weight_count,
                mac_count=mac_count,
                is_convolution=isinstance(module, _ConvNd),
            )
        )
    if not eligible:
        listing = "; ".join(f"{layer.name}: {layer.reason}" for layer in skipped) or "it has no convolutions or linear layers"
        raise UsageError(f"no layer of the network can carry a {pattern} mask ({listing})")
    return LayerSurvey(
        eligible=tuple(eligible),
        skipped=tuple(skipped),
        convolution_count=sum(isinstance(module, _ConvNd) for module in layers.values()),
        parameter_count=sum(parameter.numel() for parameter in model.parameters()),
        mac_count=sum(probe.mac_counts.values()),
    )


def obstacles(model: nn.Module, probe: Probe, *, pattern: Pattern, pad_channels: bool = False) -> dict[str, str]:
    """Layer name -> why the layer cannot carry a mask of `pattern`, whatever the user says; the others are missing."""
    shared = shared_weights(model)
    layers = weight_layers(model).items()
    found = {name: _obstacle(name, module, probe, shared, pattern, pad_channels) for name, module in layers}
    return {name: reason for name, reason in found.items() if reason is not None}


def _obstacle(
    name: str, module: WeightLayer, probe: Probe, shared: Mapping[str, str], pattern: Pattern, pad_channels: bool
) -> str | None:
    """Why the layer cannot carry a mask, whatever the user says."""
    if "weight" not in module._parameters:
        return "its weight is computed (parametrized), not stored"
    if name in shared:
        return f"shares its weight with {shared[name]}"
    if isinstance(module, _ConvTransposeNd):
        return "a transposed convolution"
    if isinstance(module, _ConvNd) and not isinstance(module, nn.Conv2d):
        return "not a 2-d convolution"
    if isinstance(module, _ConvNd) and module.groups != 1:
        return f"{'depthwise' if module.groups == module.in_channels else 'grouped'} convolution ({module.groups} groups)"
    unit = "channel" if isinstance(module, _ConvNd) else "feature"
    if isinstance(pattern, BlockPattern):
        obstacle = block_obstacle(module.weight.shape[0], _input_channels(module), unit, pattern)
    else:
        obstacle = _group_obstacle(module, unit, pattern, pad_channels)
    if obstacle is None and name not in probe.mac_counts:
        return "does not run when an image passes through the network"
    return obstacle


def _group_obstacle(module: WeightLayer, unit: str, pattern: NMPattern, pad_channels: bool) -> str | None:
    """Why the channels do not make whole groups."""
    count = _input_channels(module)
    pad_channels = pad_channels and not pattern.transposable
    if count % pattern.m and not (pad_channels and _saved_channels(count, pattern) > 0):
        remark = ", and padding them saves nothing" if pad_channels else ""
        return f"{count} input {unit}{'' if count == 1 else 's'}, not a multiple of {pattern.m}{remark}"
    count = module.weight.shape[0]
    if pattern.transposable and count % pattern.m:
        return f"{count} output {unit}{'' if count == 1 else 's'}, not a multiple of {pattern.m}"
    return None


def _input_channels(module: WeightLayer) -> int:
    return module.in_channels if isinstance(module, _ConvNd) else module.in_features


def _saved_channels(count: int, pattern: NMPattern) -> int:
    """Of `count` input channels, how many a sparse kernel leaves out for each output; it multiplies by N in every group."""
    return count - pattern.padded_length(count) // pattern.m * pattern.n


def _choice(name: str, module: WeightLayer, include: Sequence[str], excluded: str | None, pattern: Pattern) -> str | None:
    """Why an eligible layer is left dense by the user's choice, or by the default for linear and for narrow layers."""
    if excluded is not None:
        return f"excluded by mask.exclude {excluded!r}"
    matching = [glob for glob in include if fnmatchcase(name, glob)]
    if not matching:
        return "not matched by mask.include"
    if isinstance(module, nn.Linear) and not _is_named(name, include):
        return "a linear layer: name it in mask.include to mask it"
    if isinstance(pattern, NMPattern) and _input_channels(module) < pattern.m and not _is_named(name, include):
        return f"fewer than {pattern.m} input channels: name it in mask.include to mask it"
    return None


def _is_named(name: str, include: Sequence[str]) -> bool:
    """Whether a glob other than "*" asks for the layer."""
    return any(glob != _EVERYTHING and fnmatchcase(name, glob) for glob in include)


def shared_weights(model: nn.Module) -> dict[str, str]:
    """Layer name -> another name under which the same weight is used."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, (_ConvNd, nn.Linear)) and "weight" in module._parameters:
            owners.setdefault(id(module.weight), []).append(name)
    return {name: (names[1] if name == names[0] else names[0]) for names in owners.values() if len(names) > 1 for name in names}


def check_glob(what: str, glob: str, names: Sequence[str]) -> None:
    """Refuse a glob that matches none of `names`, the layers with weights.

    Args:
        what: where the glob comes from, as "mask.include".
        glob: "*", a name, or a name with wildcards.
        names: of all convolutions and linear layers.

    Raises:
        UsageError: nothing matches; names what is close.
    """
    if glob == _EVERYTHING or any(fnmatchcase(name, glob) for name in names):
        return
    if any(name.startswith(f"{glob}.") for name in names):
        hint = f"it holds layers: did you mean '{glob}.*'?"
    else:
        close = difflib.get_close_matches(glob, names, n=3)
        hint = f"did you mean {', '.join(map(repr, close))}?" if close else f"the layers are {', '.join(names) or 'none'}"
    raise UsageError(f"{what} {glob!r} matches no convolution or linear layer; {hint}")
