"""Selectors on a network in place: attached as parametrizations, read as masks, and taken off without a trace."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Literal, final

import numpy as np
import torch
from torch import nn
from torch.nn.utils import parametrize

from masksparse_deploy.core.artifacts.document import SkippedLayer
from masksparse_deploy.core.errors import UsageError
from masksparse_deploy.core.masks import LayerMask, MaskSet, fingerprint
from masksparse_deploy.core.patterns import NMPattern
from masksparse_deploy.learn.batch_norm import Statistics, running_statistics
from masksparse_deploy.learn.eligibility import GROUP_AXIS, EligibleLayer, survey_layers
from masksparse_deploy.learn.gumbel import GumbelSelector
from masksparse_deploy.learn.model import state_fingerprint
from masksparse_deploy.learn.partial import PartialSelector
from masksparse_deploy.learn.probe import probe_model
from masksparse_deploy.learn.scores import ScoreSelector
from masksparse_deploy.learn.selector import Selector

__all__ = ["AttachedMasks", "Method", "attach", "attach_masks"]

Method = Literal["scores", "gumbel"]

_SELECTORS: Mapping[str, type[ScoreSelector] | type[GumbelSelector]] = {"scores": ScoreSelector, "gumbel": GumbelSelector}
_WEIGHT = "weight"
_IMAGE_AXES = 4
_MAX_NAMED = 3


@final
class AttachedMasks:
    """Masks that are being learned on a network, and the way back to the network as it was; made by `attach_masks`.

    While attached, the masked layers compute with the chosen weights, and only the selectors' parameters take gradients.
    As a context manager it detaches at the end, also after an error; masks can be read before and after.
    `copy.deepcopy` copies it together with its network.

    Attributes:
        model: the network.
        selectors: weight name -> what chooses its mask.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[EligibleLayer],
        selectors: Mapping[str, Selector],
        *,
        method: Method,
        skipped: Sequence[SkippedLayer] = (),
    ) -> None:
        """Attach the selectors of all `layers`, by weight name; `attach` makes and checks them."""
        self.model = model
        self.selectors = dict(selectors)
        self._method = method
        self._skipped = tuple(skipped)
        self._source_sha256 = state_fingerprint(model)
        self._parameters = dict(model.named_parameters())
        self._digests = {name: _digest(parameter) for name, parameter in self._parameters.items()}
        self._take_gradients = {name: parameter.requires_grad for name, parameter in self._parameters.items()}
        self._modes = {name: module.training for name, module in model.named_modules()}
        self._buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        self._statistics = running_statistics(model)
        # Taking a parametrization off puts the weight behind the bias, which would reorder the state dict.
        self._orders = {layer.name: list(model.get_submodule(layer.name)._parameters) for layer in layers}
        # What the training changed: statistics, and names of weights; known once detached.
        self._changes: tuple[Statistics, tuple[str, ...]] | None = None
        model.requires_grad_(False)
        for layer in layers:
            module, selector = model.get_submodule(layer.name), self.selectors[layer.weight_name]
            try:
                # "unsafe" leaves out a trial that computes every mask once more; shape and dtype are kept by construction.
                parametrize.register_parametrization(module, _WEIGHT, selector.train(module.training), unsafe=True)
            except Exception as error:  # classes of the user's own may forbid what torch does to them
                # torch takes the parameter off before it makes the class.
                module._parameters.setdefault(_WEIGHT, self._parameters[layer.weight_name])
                self._restore()
                raise UsageError(
                    f"{layer.name} cannot carry a mask: torch cannot parametrize its weight ({type(error).__name__}: {error}); "
                    "leave it out by mask.exclude"
                ) from error

    def __enter__(self) -> "AttachedMasks":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        changed = self._restore()
        # An error of the training says more than what it left behind.
        if error is None:
            _check_frozen(changed)

    def parameters(self) -> list[nn.Parameter]:
        """What the optimizer gets: the parameters of all selectors."""
        return [parameter for selector in self.selectors.values() for parameter in selector.parameters()]

    def begin_step(self, progress: float, seed: int) -> None:
        """Get ready for a training step; `gumbel` needs it, to anneal its temperature and to draw reproducibly.

        Args:
            progress: how much of the training is done, from 0 to 1.
            seed: not negative; of the random numbers of this step, which are different for every layer.
        """
        children = np.random.SeedSequence(seed).spawn(len(self.selectors))
        for selector, child in zip(self.selectors.values(), children, strict=True):
            selector.begin_step(progress, int(child.generate_state(1)[0]))

    def masks(self) -> dict[str, LayerMask]:
        """The hardened masks by weight name: what the network computes with in evaluation mode.

        Raises:
            UsageError: the training diverged, so that scores are NaN or infinite.
        """
        masks = {}
        for name, selector in self.selectors.items():
            if not all(bool(torch.isfinite(parameter).all()) for parameter in selector.parameters()):
                raise UsageError(f"the {self._method} of {name} became NaN or infinite in training; try a lower learning rate")
            masks[name] = LayerMask(weight_name=name, keep=selector.harden(), group_axis=GROUP_AXIS, pattern=selector.pattern)
        return masks

    def mask_set(self) -> MaskSet:
        """The hardened masks with what `masksparse bake` needs to know about them.

        They are for the network as it was when they were attached; batch-norm statistics that moved since come along.

        Raises:
            UsageError: as `masks`, or weights changed while they should have been frozen.
        """
        statistics, changed = self._changes or self._find_changes()
        _check_frozen(changed)
        return MaskSet(
            layers=self.masks(),
            source_sha256=self._source_sha256,
            method=self._method,
            skipped=self._skipped,
            statistics=statistics,
        )

    def detach(self) -> None:
        """Take the masks off: module tree, buffers, gradient flags and modes are as before. A second call does nothing.

        Raises:
            UsageError: weights changed while they should have been frozen; all else is restored.
        """
        _check_frozen(self._restore())

    def _restore(self) -> tuple[str, ...]:
        """Take the masks off, once; the names of the weights that changed while they were on."""
        if self._changes is not None:
            return self._changes[1]
        self._changes = self._find_changes()
        for name, order in self._orders.items():
            module = self.model.get_submodule(name)
            if parametrize.is_parametrized(module, _WEIGHT):
                # A deep copy shares the class that is about to lose its parametrized weight.
                kind = type(module)
                module.__class__ = type(kind.__name__, kind.__bases__, dict(kind.__dict__))
                parametrize.remove_parametrizations(module, _WEIGHT, leave_parametrized=False)
            for key in order:
                module._parameters[key] = module._parameters.pop(key)
        with torch.no_grad():
            for name, buffer in self._buffers.items():
                self.model.get_buffer(name).copy_(buffer)
        for name, parameter in self._parameters.items():
            parameter.requires_grad_(self._take_gradients[name])
        for name, training in self._modes.items():
            self.model.get_submodule(name).training = training
        return self._changes[1]

    def _find_changes(self) -> tuple[Statistics, tuple[str, ...]]:
        now = running_statistics(self.model)
        moved = any(not np.array_equal(now[name], before) for name, before in self._statistics.items())
        changed = tuple(name for name, parameter in self._parameters.items() if _digest(parameter) != self._digests[name])
        return now if moved else {}, changed


def attach(
    model: nn.Module,
    layers: Sequence[EligibleLayer],
    pattern: NMPattern,
    method: Method,
    *,
    skipped: Sequence[SkippedLayer] = (),
) -> AttachedMasks:
    """Attach masks to layers that were found eligible, starting at magnitude masks.

    Args:
        model: float32, on any device and in any mode; its weights take no gradients until the masks are detached.
        layers: from `survey_layers`, with the same pattern.
        pattern: N:M.
        method: "scores" or "gumbel".
        skipped: the layers left dense, to be recorded in the mask set.

    Raises:
        UsageError: the network carries masks already, is not float32 or not finite, or the method does not exist or cannot do
            the pattern. The network is as before then.
    """
    if method not in _SELECTORS:
        raise UsageError(f"method {method!r} does not learn masks; use one of {', '.join(map(repr, _SELECTORS))}")
    if pattern.transposable:
        raise UsageError(
            f"pattern {pattern}: {method!r} chooses each group by itself and finds no transposable masks; use the pattern "
            f"{replace(pattern, transposable=False)}, or learn with method 'sparse-training'"
        )
    _check_network(model)
    selectors = {layer.weight_name: _selector(method, model.get_parameter(layer.weight_name), pattern) for layer in layers}
    return AttachedMasks(model, layers, selectors, method=method, skipped=skipped)


def attach_masks(
    model: nn.Module,
    example: torch.Tensor,
    *,
    pattern: str = "2:4",
    method: Method = "scores",
    include: Sequence[str] = ("*",),
    exclude: Sequence[str] = (),
    pad_channels: bool = False,
) -> AttachedMasks:
    """Attach masks to a trained classifier, to be learned in a training loop of one's own.

    Args:
        model: the network, float32, on any device and in any mode; see `AttachedMasks` for what happens to it.
        example: images as the network takes them, (count, channels, height, width); only their shape is looked at.
        pattern: "N:M", N weights kept of every M along the input channels; not transposable.
        method: "scores", one score per weight; or "gumbel", one logit per admissible row, with random draws in training.
        include: globs over layer names; linear layers are masked only where a glob other than "*" names them.
        exclude: globs over layer names, left dense; wins over `include`.
        pad_channels: mask layers whose input channels are no multiple of M too; see `survey_layers`.

    Raises:
        UsageError: no layer is eligible, a glob matches none, a layer named without wildcards cannot carry a mask, the network
            does not take such images or is wrapped, or what `attach` raises. The network is as before then.
    """
    for option, globs in (("include", include), ("exclude", exclude)):
        if isinstance(globs, str):
            raise UsageError(f"{option} is the text {globs!r}, which would be read letter by letter; give a list: [{globs!r}]")
    if example.ndim != _IMAGE_AXES:
        raise UsageError(f"the example has the shape {tuple(example.shape)}; it must be (count, channels, height, width)")
    _check_unwrapped(model)
    _check_network(model)
    chosen = NMPattern.parse(pattern)
    with _evaluating(model):
        probe = probe_model(model, tuple(example.shape[1:]))
        survey = survey_layers(model, probe, pattern=chosen, include=include, exclude=exclude, pad_channels=pad_channels)
    return attach(model, survey.eligible, chosen, method, skipped=survey.skipped)


def _selector(method: Method, weight: torch.Tensor, pattern: NMPattern) -> Selector:
    kind = _SELECTORS[method]
    return PartialSelector(kind, weight, pattern) if weight.shape[GROUP_AXIS] % pattern.m else kind(weight, pattern)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and back: in training batch norms, and spectral norms whose weight is but looked at, move on."""
    modes = {name: module.training for name, module in model.named_modules()}
    try:
        model.eval()
        yield
    finally:
        for name, module in model.named_modules():
            module.training = modes[name]


def _check_unwrapped(model: nn.Module) -> None:
    """Names go into the mask set, and a wrapper puts its own before them."""
    inside = "_orig_mod" if isinstance(getattr(model, "_orig_mod", None), nn.Module) else "module"
    if inside == "_orig_mod" or isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UsageError(
            f"the network is wrapped in {type(model).__name__}, under whose names masks would not fit its checkpoint; attach "
            f"to the network inside, model.{inside}, before it is wrapped"
        )


def _check_network(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, Selector):
            layer = name.partition(".parametrizations")[0]
            raise UsageError(f"the network carries masks already, on {layer} for one; detach() these first")
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UsageError(
                f"{name} is {tensor.dtype}, and masks are made for float32 networks; call model.float() first, and train "
                "under torch.autocast where less precision is wanted"
            )
        if not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{name} holds NaN or infinite values; use weights from before the training diverged")


def _check_frozen(changed: Sequence[str]) -> None:
    if changed:
        more = f" and {len(changed) - _MAX_NAMED} more" if len(changed) > _MAX_NAMED else ""
        raise UsageError(
            f"{', '.join(changed[:_MAX_NAMED])}{more} changed while masks were attached, so the masks are not for the weights "
            "that they were made for; give the optimizer parameters() of the attached masks, and nothing else"
        )


def _digest(parameter: nn.Parameter) -> str:
    return fingerprint({"": parameter.detach().cpu().numpy()})
