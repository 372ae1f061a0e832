"""Which form every layer takes: first by timing layers, then by timing whole networks in which layers of one kind change."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from masksparse_deploy.core.artifacts.document import Interval
from masksparse_deploy.core.progress import Progress
from masksparse_deploy.profiling.known_times import Times
from masksparse_deploy.rewrite.forms import DENSE, Form
from masksparse_deploy.rewrite.networks import SPARSE, Network, Networks
from masksparse_deploy.rewrite.sites import Site

__all__ = ["Choice", "TimedLayer", "choose_forms"]

# Within this factor of the dense time, what a layer takes alone does not tell what it does to a network: there its weights
# have left the caches since the last inference, and its neighbours may keep or lose the layout that they share.
_UNCERTAIN = 1.35
# The decisions between the last networks, and whether a file is written at all, get so many times the rounds of the others.
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
        network: the forms by node name, and whether output channels that nobody reads are left out.
        reasons: by node name, for every timed layer, in words.
        speedup: the sparse file's time over the rewritten one's, as whole networks; None where nothing was rewritten.
        interval: of it.
        remarks: what else there is to say.
    """

    network: Network = SPARSE
    reasons: Mapping[str, str] = field(default_factory=dict)
    speedup: float | None = None
    interval: Interval | None = None
    remarks: tuple[str, ...] = ()


def choose_forms(
    layers: Sequence[TimedLayer], networks: Networks, rounds: int, progress: Progress, *, smallest_gain: float
) -> Choice:
    """Choose forms by the times of the layers, and revise that by the times of whole networks.

    Some networks are compared with the sparse one first: with the layers rewritten that gain alone, with all, and with all in
    the same form of rows, which a layer alone pays for at both ends and a network does not. From the fastest one on, the
    layers of each kind whose own times do not decide are changed together, to one form after the other, and a change stays if
    the network is faster by it (its interval is above 1). What that ends in is timed against the networks with all layers
    rewritten once more, each with and without the output channels that nobody reads, and the fastest of all against the
    sparse one.

    Args:
        layers: those with more than one form.
        networks: times variants of the sparse file.
        rounds: how often each is timed.
        progress: told after each comparison.
        smallest_gain: the share by which a layer's own time must fall, for a start.
    """
    gaining = Network(forms={layer.site.name: _form(layer) for layer in layers if _gains(layer, smallest_gain)})
    everything = Network(forms={layer.site.name: _form(layer) for layer in layers})
    kinds = [[other for other in layers if other.kind == kind] for kind in dict.fromkeys(layer.kind for layer in layers)]
    trials = [(members, form) for members in kinds for form in members[0].contenders if len(members[0].contenders) > 1]
    total = len(trials) + 3
    progress("timing networks", 0, total)
    current = networks.fastest([SPARSE, gaining, everything, *_all_in_rows(layers)])
    progress("timing networks", 1, total)
    for index, (members, form) in enumerate(trials, start=2):
        changed = {**current.forms, **{layer.site.name: form for layer in members}}
        other = Network(forms={name: chosen for name, chosen in changed.items() if chosen != DENSE})
        if other != current and networks.is_faster(other, current):
            current = other
        progress("timing networks", index, total)
    # trials in few rounds, one after the other, may have led astray
    expected = Network(forms={layer.site.name: layer.forms[-1] for layer in layers})
    finalists = networks.with_fewer_outputs([current, everything, expected])
    current = networks.fastest(finalists, _FINAL_ROUNDS * rounds)
    progress("timing networks", total - 1, total)
    times = networks.compare(SPARSE, current, rounds=_FINAL_ROUNDS * rounds) if current != SPARSE else None
    progress("timing networks", total, total)
    remarks = () if times is None or times.intervals[1].low > 1 else (_not_faster(times),)
    if times is None or remarks:
        current = SPARSE
    reasons = {layer.site.name: _reason(layer, current.forms.get(layer.site.name), smallest_gain) for layer in layers}
    if times is None or remarks:
        return Choice(reasons=reasons, remarks=remarks)
    return Choice(network=current, reasons=reasons, speedup=times.speedups[1], interval=times.intervals[1])


def _all_in_rows(layers: Sequence[TimedLayer]) -> list[Network]:
    """Networks with every layer that has masked positions in rows, one for each form of these."""
    forms = dict.fromkeys(form for layer in layers for form in layer.forms if form.name == "rows")
    return [Network(forms={layer.site.name: form for layer in layers if form in layer.forms}) for form in forms]


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
