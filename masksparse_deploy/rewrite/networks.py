"""Whole networks with their layers in chosen forms, compared in time."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from masksparse_deploy.graph.annotations import HELD_CHANNELS
from masksparse_deploy.profiling.known_times import Times
from masksparse_deploy.rewrite.forms import Form, rewritten
from masksparse_deploy.rewrite.measure import Stopwatch

__all__ = ["SPARSE", "Network", "Networks"]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A variant of the sparse file.

    Attributes:
        forms: by node name; layers that are not named stay dense.
        without_unread: whether output channels that nobody reads are left out.
    """

    forms: Mapping[str, Form] = field(default_factory=dict)
    without_unread: bool = False


SPARSE = Network()


class Networks:
    """Times variants of one sparse file.

    Args:
        source: the sparse file.
        stopwatch: times models.
        channel_block: channels that the runtime keeps together.
    """

    def __init__(self, source: onnx.ModelProto, stopwatch: Stopwatch, channel_block: int) -> None:
        self._source = source
        self._stopwatch = stopwatch
        self._block = channel_block

    def compare(self, *networks: Network, rounds: int | None = None) -> Times:
        """Times of networks, compared with the first."""
        models = {str(index): self._model(network) for index, network in enumerate(networks)}
        return self._stopwatch.compare(models, rounds=rounds)[0]

    def fastest(self, networks: Sequence[Network], rounds: int | None = None) -> Network:
        """Of several networks the fastest; each is timed once, even where two are the same."""
        distinct = [network for index, network in enumerate(networks) if network not in networks[:index]]
        if len(distinct) == 1:
            return distinct[0]
        speedups = self.compare(*distinct, rounds=rounds).speedups
        return distinct[max(range(len(distinct)), key=speedups.__getitem__)]

    def is_faster(self, changed: Network, current: Network) -> bool:
        """Whether a network is faster than another, clear of noise."""
        return self.compare(current, changed).intervals[1].low > 1

    def with_fewer_outputs(self, networks: Iterable[Network]) -> list[Network]:
        """These, each once, and without the output channels that nobody reads, where there are such."""
        found: list[Network] = []
        for network in networks:
            if network in found:
                continue
            fewer = Network(forms=network.forms, without_unread=True)
            has_unread = any(
                entry.key == HELD_CHANNELS for node in self._model(fewer).graph.node for entry in node.metadata_props
            )
            found += [network, fewer] if has_unread else [network]
        return found

    def _model(self, network: Network) -> onnx.ModelProto:
        return rewritten(self._source, network.forms, unread_block=self._block if network.without_unread else None)
