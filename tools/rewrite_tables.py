"""The tables of the benchmark of rewritten networks, in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

__all__ = ["layer_table", "network_table", "why"]

Result = Mapping[str, Any]

# A part of a layer's time that is worth a word.
_WORTH_TELLING = 0.03
_LOSSES = {
    "conv": "arithmetic slower than the dense layer's",
    "gather": "gathering",
    "reorder": "reordering around the gather",
    "join": "joining parts",
}


def network_table(results: Sequence[Result]) -> str:
    """One row for each network, pattern, number of threads and runtime."""
    columns = ("network", "pattern", "threads", "runtime", "dense", "zeros", "every layer gathered", "unread left out")
    lines = [_row([*columns, "chosen", "spread of the rounds"]), "|---" * (len(columns) + 2) + "|"]
    for result in results:
        chosen = result["speedups"]["chosen"]
        ratios = [f"{result['speedups'][name]['geometric_mean']:.2f}x" for name in ("zeros", "gathered", "unread left out")]
        cells = [
            result["network"],
            result["pattern"],
            result["threads"],
            result["runtime"],
            f"{result['median_ms']['dense']:.2f} ms",
            *ratios,
            f"**{chosen['geometric_mean']:.2f}x** [{chosen['low']:.2f}, {chosen['high']:.2f}]",
            f"{chosen['smallest']:.2f} to {chosen['largest']:.2f}",
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def layer_table(result: Result) -> str:
    """One row for each kind of layer of a network: layers of the same shapes, form and density follow one another."""
    lines = [
        f"### {result['network']}, {result['pattern']}, {result['threads']} thread{'s' if result['threads'] > 1 else ''}",
        "",
        "| layers | kernel, channels | output | form | dense | now | speedup | ideal | why not ideal |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for members in _kinds(result["layers"]):
        first, mean = members[0], _mean(members)
        kernel, size = first["weight"], first["output"]
        cells = [
            first["layer"] if len(members) == 1 else f"{first['layer']} and {len(members) - 1} alike",
            f"{kernel[2]}x{kernel[3]}, {kernel[1]} to {kernel[0]}",
            f"{size[2]}x{size[3]}",
            first["form"],
            f"{mean['dense_ms']:.3f} ms",
            f"{_now(mean):.3f} ms",
            f"{mean['dense_ms'] / _now(mean):.2f}x",
            f"{1 / first['density']:.2f}x",
            why(mean),
        ]
        lines.append(_row(cells))
    return "\n".join(lines)


def why(layer: Mapping[str, Any]) -> str:
    """What keeps a layer from 1 / density, in shares of the time that it takes now."""
    if layer["form"] == "dense":
        return str(layer["reason"])
    words = []
    if layer["computed_density"] > layer["density"]:
        words.append(f"computes {layer['computed_density']:.0%} to keep {layer['density']:.0%}")
    lost = {kind: layer[f"{kind}_ms"] for kind in ("gather", "reorder", "join")}
    lost["conv"] = layer["conv_ms"] - layer["dense_ms"] * layer["computed_density"]
    shares = {kind: ms / _now(layer) for kind, ms in sorted(lost.items(), key=lambda entry: -entry[1])}
    words += [f"{_LOSSES[kind]} {share:.0%}" for kind, share in shares.items() if share >= _WORTH_TELLING]
    return ", ".join(words) or "nearly ideal"


def _now(layer: Mapping[str, Any]) -> float:
    return float(sum(layer[f"{kind}_ms"] for kind in _LOSSES))


def _kinds(layers: Sequence[Mapping[str, Any]]) -> Iterator[list[Mapping[str, Any]]]:
    """Layers that do the same work, in order of their first."""

    def key(layer: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(str(layer[name]) for name in ("weight", "output", "form", "density", "computed_density"))

    order = {key(layer): index for index, layer in reversed(list(enumerate(layers)))}
    for _, members in groupby(sorted(layers, key=lambda layer: order[key(layer)]), key=key):
        yield list(members)


def _mean(layers: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The first layer with the mean times of all."""
    times = [name for name in layers[0] if name.endswith("_ms")]
    return {**layers[0], **{name: sum(layer[name] for layer in layers) / len(layers) for name in times}}


def _row(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(map(str, cells))} |"
