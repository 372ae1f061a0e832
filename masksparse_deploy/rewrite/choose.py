"""Which form every layer takes: first by timing layers, then by timing whole networks in which layers of one kind change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.profiling.known_times import Times
from masksparse_deploy.rewrite.forms import DENSE, Form, rewritten
from masksparse_deploy.rewrite.measure import Stopwatch
from masksparse_deploy.rewrite.sites import Site

__all__ = ["Choice", "TimedLayer", "choose_forms"]

# Within this factor of the dense time, what a layer takes alone does not tell what it does to a network: there its weights
# have left the caches since the last inference, and its neighbours may keep or lose the layout that they share.
_UNCERTAIN = 1.35
# The decision whether a file is written at all gets so many times the rounds of the others.
_FINAL_ROUNDS = 3


@dataclass(frozen=True, eq=False, kw_only=True)
class TimedLayer:
    """A layer with the times of its forms.

    Attributes:
        site: the layer.
        forms: dense first.
        times: of the forms, in their order, as a small network each.
        from_cache: whether the times were taken in an earlier run.
        kind: layers of one kind do the same arithmetic.
    """

    site: Site
    forms: tuple[Form, ...]
    times: Times
    from_cache: bool
    kind: str

    @property
    def fastest_other(self) -> int:
        """Which form that is not dense is the fastest."""
        return max(range(1, len(self.forms)), key=lambda index: self.times.speedups[index])

    @property
    def contenders(self) -> tuple[Form, ...]:
        """The forms among which a network decides, as the layer's own times do not; one if they do."""
        intervals = self.times.intervals
        best = intervals[self.fastest_other]
        near = [form for form, own in zip(self.forms[1:], intervals[1:], strict=True) if own.high >= best.low]
        is_uncertain = best.high > 1 / _UNCERTAIN and best.low < _UNCERTAIN
        return (*near, DENSE) if is_uncertain else tuple(near)


@dataclass(frozen=True, eq=False, kw_only=True)
class Choice:
    """What was chosen.

    Attributes:
        forms: by node name; layers that stay dense are not in it.
        reasons: by node name, for every timed layer, in words.
        speedup: the sparse file's time over the rewritten one's, as whole networks; None where nothing was rewritten.
        interval: of it.
        remarks: what else there is to say.
    """

    forms: Mapping[str, Form]
    reasons: Mapping[str, str]
    speedup: float | None = None
    interval: Interval | None = None
    remarks: tuple[str, ...] = ()


def choose_forms(
    source: onnx.ModelProto, layers: Sequence[TimedLayer], stopwatch: Stopwatch, progress: Progress, *, smallest_gain: float
) -> Choice:
    """Choose forms by the times of the layers, and revise that by the times of whole networks.

    Some networks are compared with the sparse one first: with the layers rewritten that gain alone, with all, and with all in
    the same form of rows, which a layer alone pays for at both ends and a network does not. From the fastest one on, the
    layers of each kind whose own times do not decide are changed together, to one form after the other, and a change stays if
    the network is faster by it (its interval is above 1).

    Args:
        source: the sparse file.
        layers: those with more than one form.
        stopwatch: times networks.
        progress: told after each comparison.
        smallest_gain: the share by which a layer's own time must fall, for a start.
    """
    search = _Search(source, stopwatch)
    gaining = {layer.site.name: _form(layer) for layer in layers if _gains(layer, smallest_gain)}
    everything = {layer.site.name: _form(layer) for layer in layers}
    kinds = [[other for other in layers if other.kind == kind] for kind in dict.fromkeys(layer.kind for layer in layers)]
    trials = [(members, form) for members in kinds for form in members[0].contenders if len(members[0].contenders) > 1]
    total = len(trials) + 2
    progress("timing networks", 0, total)
    current = search.fastest([{}, gaining, everything, *_all_in_rows(layers)])
    progress("timing networks", 1, total)
    for index, (members, form) in enumerate(trials, start=2):
        changed = {**current, **{layer.site.name: form for layer in members}}
        changed = {name: chosen for name, chosen in changed.items() if chosen != DENSE}
        if changed != current and search.is_faster(changed, current):
            current = changed
        progress("timing networks", index, total)
    times = search.compare({}, current, rounds=_FINAL_ROUNDS * stopwatch.options.rounds) if current else None
    progress("timing networks", total, total)
    remarks = () if times is None or times.intervals[1].low > 1 else (_not_faster(times),)
    if times is None or remarks:
        current = {}
    reasons = {layer.site.name: _reason(layer, current.get(layer.site.name), smallest_gain) for layer in layers}
    if times is None or remarks:
        return Choice(forms={}, reasons=reasons, remarks=remarks)
    return Choice(forms=current, reasons=reasons, speedup=times.speedups[1], interval=times.intervals[1])


class _Search:
    """Whole networks, compared in time."""

    def __init__(self, source: onnx.ModelProto, stopwatch: Stopwatch) -> None:
        self._source = source
        self._stopwatch = stopwatch

    def compare(self, *choices: Mapping[str, Form], rounds: int | None = None) -> Times:
        """Times of the networks with these forms, compared with the first."""
        models = {str(index): rewritten(self._source, choice) for index, choice in enumerate(choices)}
        return self._stopwatch.compare(models, rounds=rounds)[0]

    def fastest(self, choices: Sequence[Mapping[str, Form]]) -> Mapping[str, Form]:
        """Of several choices the fastest; each is timed once, even where two are the same."""
        distinct = [choice for index, choice in enumerate(choices) if choice not in choices[:index]]
        if len(distinct) == 1:
            return distinct[0]
        speedups = self.compare(*distinct).speedups
        return distinct[max(range(len(distinct)), key=speedups.__getitem__)]

    def is_faster(self, changed: Mapping[str, Form], current: Mapping[str, Form]) -> bool:
        """Whether a network is faster than another, clear of noise."""
        return self.compare(current, changed).intervals[1].low > 1


def _all_in_rows(layers: Sequence[TimedLayer]) -> list[Mapping[str, Form]]:
    """Networks with every layer that has masked positions in rows, one for each form of these."""
    forms = dict.fromkeys(form for layer in layers for form in layer.forms if form.name == "rows")
    return [{layer.site.name: form for layer in layers if form in layer.forms} for form in forms]


def _form(layer: TimedLayer) -> Form:
    return layer.forms[layer.fastest_other]


def _gains(layer: TimedLayer, smallest_gain: float) -> bool:
    index = layer.fastest_other
    return layer.times.speedups[index] * (1 - smallest_gain) >= 1 and layer.times.intervals[index].low > 1


def _reason(layer: TimedLayer, chosen: Form | None, smallest_gain: float) -> str:
    index = layer.fastest_other if chosen is None else layer.forms.index(chosen)
    interval = layer.times.intervals[index]
    alone = f"{layer.times.speedups[index]:.2f}x [{interval.low:.2f}, {interval.high:.2f}] alone as {layer.forms[index]}"
    gains = _gains(layer, smallest_gain)
    if chosen is not None:
        return f"faster: {alone}" if gains else f"{alone}, and the network is faster with it"
    return f"{alone}, but the network is not faster with it" if gains else f"not faster: {alone}"


def _not_faster(times: Times) -> str:
    interval = times.intervals[1]
    return (
        f"the rewritten network as a whole is not faster than the sparse one: {times.speedups[1]:.2f}x "
        f"[{interval.low:.2f}, {interval.high:.2f}]"
    )
