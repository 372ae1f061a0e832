"""What TensorRT's builder tells about sparsity and about the tactics it timed: a pure parser of its log.

TensorRT 8 writes "(Sparsity) Layers eligible for sparse math: a, b" and "(Sparsity) TRT inference plan picked sparse
implementation for layers: a"; 10 writes "(Sparsity) Found 2 layer(s) eligible to use sparse tactics: a, b" and "(Sparsity)
Chose 1 layer(s) using sparse tactics: a", at times without the names. They may come again with each pass. Tactics and their
times are told by the verbose log only: behind the name of a layer "Tactic Name: t Tactic: 0x1 Time: 0.02", or older versions in
two lines.
"""

import functools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

from masksparse_deploy.engine.tactic_names import read_tactic

__all__ = ["BuildLog", "TacticTiming", "is_told", "parse_log"]

_ELIGIBLE = re.compile(
    r"\(Sparsity\) (?:Layers eligible for sparse math|Found (\d+) layer\(s\) eligible to use sparse tactics)(?::\s*(.*))?"
)
_CHOSEN = re.compile(
    r"\(Sparsity\) (?:TRT inference plan picked sparse implementation for layers|Chose (\d+) layer\(s\) using sparse tactics)"
    r"(?::\s*(.*))?"
)
_RUNNER = re.compile(r"Timing Runner: (.+) \([^()]*\)\s*$")
_FORMATS = re.compile(r"Autotuning format combination: (.+?)\s*\**\s*$")
_NAMED_TIME = re.compile(r"Tactic Name: (\S+) Tactic: (0x[0-9a-fA-F]+) Time: (\S+)")
_NAME = re.compile(r"Set Tactic Name: (\S+) Tactic: (0x[0-9a-fA-F]+)")
_TIME = re.compile(r"(?:^|\] )Tactic: (0x[0-9a-fA-F]+) Time: (\S+)")
_PREFIX = re.compile(r"^(?:\[[^\]]*\] )*")
_CACHED = re.compile(r"(.+) \[(.+)\] got cached result: \w+, tactic (0x[0-9a-fA-F]+), (\S+) ms")
_TOLD = (_RUNNER, _FORMATS, _NAMED_TIME, _NAME, _TIME, _CACHED)


@dataclass(frozen=True, kw_only=True)
class TacticTiming:
    """One tactic that the builder timed for a layer.

    Attributes:
        layer: the engine layer's name, as in the inspector.
        formats: layouts and types it was timed with, in TensorRT's words; only times of the same formats compare kernels alone.
        tactic: the kernel's name; "" for a time that was kept from another build or layer, if the log does not name it.
        tactic_value: its number, as "0x0123456789abcdef".
        time_ms: as the builder measured it.
    """

    layer: str
    formats: str
    tactic: str
    tactic_value: str
    time_ms: float


@dataclass(frozen=True, kw_only=True)
class BuildLog:
    """What a build told.

    Attributes:
        eligible: engine layers whose weights allow sparse tactics, of all passes together.
        chosen: engine layers that got one.
        eligible_count: how many are eligible; None where the log does not tell. Without names, of the last pass.
        chosen_count: likewise.
        timings: every tactic with a finite time, in the log's order.
    """

    eligible: tuple[str, ...]
    chosen: tuple[str, ...]
    eligible_count: int | None
    chosen_count: int | None
    timings: tuple[TacticTiming, ...]

    @property
    def names_chosen(self) -> bool:
        """Whether it is known of every layer whether it was chosen."""
        return self.chosen_count is not None and self.chosen_count == len(self.chosen)

    @functools.cached_property
    def times_sparse(self) -> bool:
        """Whether the times are of sparse tactics too, of whatever layer."""
        return any(read_tactic(timing.tactic).is_sparse for timing in self.timings)

    def timings_of(self, layer: str) -> tuple[TacticTiming, ...]:
        """The tactics timed for an engine layer."""
        return tuple(self._by_layer.get(layer, ()))

    @functools.cached_property
    def _by_layer(self) -> dict[str, list[TacticTiming]]:
        found: dict[str, list[TacticTiming]] = {}
        for timing in self.timings:
            found.setdefault(timing.layer, []).append(timing)
        return found


def is_told(line: str) -> bool:
    """Whether a line of the builder's log, with or without severity and date in front, is one that `parse_log` reads."""
    return "(Sparsity)" in line or any(pattern.search(line) for pattern in _TOLD)


def parse_log(text: str) -> BuildLog:
    """Read the lines of a log that tell something; others are passed over."""
    lines = text.splitlines()
    eligible, eligible_count = _named(_ELIGIBLE, lines)
    chosen, chosen_count = _named(_CHOSEN, lines)
    return BuildLog(
        eligible=eligible,
        chosen=chosen,
        eligible_count=eligible_count,
        chosen_count=chosen_count,
        timings=tuple(_timings(lines)),
    )


def _named(pattern: re.Pattern[str], lines: list[str]) -> tuple[tuple[str, ...], int | None]:
    """The names of all lines that match, and how many there are; the count of the last line where none is named."""
    names: dict[str, None] = {}
    count = None
    for match in filter(None, map(pattern.search, lines)):
        found = [name for name in (match.group(2) or "").strip().split(", ") if name]
        names.update(dict.fromkeys(found))
        count = len(found) if match.group(1) is None else int(match.group(1))
    return tuple(names), len(names) if names else count


def _timings(lines: list[str]) -> Iterator[TacticTiming]:
    layer = formats = ""
    tactics: dict[str, str] = {}
    for line in lines:
        if match := _RUNNER.search(line):
            layer = match.group(1)
        elif match := _FORMATS.search(line):
            formats = match.group(1)
        elif match := _NAMED_TIME.search(line):
            tactics[match.group(2)] = match.group(1)
            yield from _timing(layer, formats, match.group(1), match.group(2), match.group(3))
        elif match := _NAME.search(line):
            tactics[match.group(2)] = match.group(1)
        elif match := _CACHED.search(_PREFIX.sub("", line)):
            name, held, value, time = match.groups()
            yield from _timing(name, held, tactics.get(value, ""), value, time)
        elif match := _TIME.search(line):
            yield from _timing(layer, formats, tactics.get(match.group(1), ""), match.group(1), match.group(2))


def _timing(layer: str, formats: str, tactic: str, value: str, time: str) -> Iterator[TacticTiming]:
    try:
        time_ms = float(time)
    except ValueError:
        return
    # a tactic that failed while it was timed has an infinite time
    if layer and math.isfinite(time_ms):
        yield TacticTiming(layer=layer, formats=formats, tactic=tactic, tactic_value=value, time_ms=time_ms)
