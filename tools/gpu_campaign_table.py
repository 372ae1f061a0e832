"""A campaign's record as a page for docs/measurements."""

from collections.abc import Iterator, Mapping
from typing import Any

from tools.gpu_campaign_record import Record

__all__ = ["page"]

_KERNELS = "Kernels"
_KERNELS_HOLD = (
    "Times are of the layer between a 1x1 convolution of 4 channels and a global pooling, which weaken the speedup of short "
    "ones; the builder's own times are of the layer alone."
)


def page(record: Record) -> str:
    """Markdown: where and how it was measured, a table for every piece, and what failed."""
    facts = record.facts
    versions = ", ".join(f"{name} {version}" for name, version in sorted(facts["versions"].items()))
    lines = [
        f"# Measured on {facts['device']['name']}",
        "",
        f"Made by `{facts['command']}`; do not edit. Backend {facts['backend']}, {versions or 'versions not told'}, Python "
        f"{facts['python']}; {_details(facts['device'])}.",
    ]
    if facts["device"]["kind"] != "cuda":
        lines += ["", "**A rehearsal on a CPU: it shows that the tool works, and tells nothing about GPUs.**"]
    for title, rows in (
        (_KERNELS, _kernels(_of(record, "kernels"))),
        ("Networks", _networks(_of(record, "networks"))),
        ("Other cases", _others(record)),
    ):
        table = list(rows)
        if len(table) > 2:
            lines += ["", f"## {title}", "", *([_KERNELS_HOLD, ""] if title == _KERNELS else []), *table]
    failures = record.failures
    lines += ["", f"Cases: {len(record.cases)}. Failed: {len(failures)}."]
    lines += [f"- {name}: {_cell(error)}" for name, error in failures.items()]
    return "\n".join(lines) + "\n"


def _of(record: Record, piece: str) -> Mapping[str, dict[str, Any]]:
    return {name: row for name, row in record.cases.items() if row["piece"] == piece and "error" not in row}


def _kernels(rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    """The largest gains first: the same 2:4 weights, sparse tactics forbidden and allowed."""
    yield "| kernel | forbidden ms | allowed ms | speedup | interval | builder's own times | sums | tactic where allowed |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in sorted(rows.items(), key=lambda item: -float(item[1]["speedup"]["ratio"])):
        tactic = {True: row["sparse_tactic"], False: "a dense one", None: "not told"}[row["picked"]]
        sums = " then ".join(dict.fromkeys(found or "not told" for found in row["sums"]))
        figures = f"{row['dense_ms']:.4f} | {row['sparse_ms']:.4f} | {_speedup(row['speedup'])}"
        yield f"| {name} | {figures} | {_builders(row['builder'])} | {sums} | {_cell(tactic)} |"


def _networks(rows: Mapping[str, dict[str, Any]]) -> Iterator[str]:
    yield "| network | dense ms | sparse ms | speedup | interval | by sparse tactics alone | sparse kernels | valid |"
    yield "|---|---|---|---|---|---|---|---|"
    for name, row in rows.items():
        profile = row["profile"]
        invalid = "; ".join(profile["invalid_because"])
        valid = f"no: {invalid}" if invalid else "yes"
        yield (
            f"| {name} | {profile['dense']['median_ms']:.4f} | {profile['sparse']['median_ms']:.4f} | "
            f"{_speedup(profile['speedup'])} | {_alone(profile)} | {_cell(row['sparse_kernels'])} | {_cell(valid)} |"
        )


def _others(record: Record) -> Iterator[str]:
    yield "| case | outcome |"
    yield "|---|---|"
    for piece in ("tests", "golden", "refit", "validation"):
        for name, row in _of(record, piece).items():
            yield f"| {name} | {_cell(row['outcome'])} |"


def _builders(told: Mapping[str, Any] | None) -> str:
    """What the builder timed of the layer alone."""
    if told is None:
        return "not told"
    counts = f"{told['sparse_count']} of {told['tactic_count']} tactics sparse"
    if "sparse_ms" not in told:
        return counts
    formats = "" if told["same_formats"] else ", other formats"
    return f"dense {told['dense_ms']:.4f}, sparse {told['sparse_ms']:.4f} ms{formats}; {counts}"


def _speedup(speedup: Mapping[str, Any]) -> str:
    return f"{speedup['ratio']:.3f} | {_interval(speedup['interval'])}"


def _alone(profile: Mapping[str, Any]) -> str:
    """The ratio of the same weights with sparse tactics forbidden and allowed."""
    for ratio in profile["ratios"]:
        if (ratio["slower"], ratio["faster"]) == ("forbidden", "sparse"):
            return f"{ratio['ratio']:.3f}, {_interval(ratio['interval'])}"
    return "not told"


def _interval(interval: Mapping[str, Any]) -> str:
    return f"{interval['low']:.3f} to {interval['high']:.3f} ({100 * interval['confidence']:.3g} %)"


def _details(device: Mapping[str, Any]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in sorted(device["details"].items())) or "no details"


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "/").split())
