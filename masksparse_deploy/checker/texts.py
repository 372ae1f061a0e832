"""The sentences of a certificate, written again from its fields; docs/check.md lists them.

A sentence that says anything else, another number included, is wrong.
"""

import decimal
import re
from collections.abc import Sequence

__all__ = [
    "DATA_FREE",
    "LAYERWISE",
    "NOTHING",
    "assumptions_of",
    "data_free_statement",
    "end_to_end_detail",
    "layerwise_detail",
    "layerwise_statement",
    "method_of",
    "no_rule",
    "printed_in",
    "radius_in",
    "rounded_up",
    "samples_statement",
]

LAYERWISE = "layerwise"
DATA_FREE = "end-to-end, data-free"
NOTHING = "Nothing is claimed."

_EXACT = "The networks are computed in exact real arithmetic; rounding by an engine comes on top."
_SIZES = "Convolutions pad with zeros and have inputs of the sizes that the model has for the images of the data set."
_ROUNDING = "Bounds are computed in float64 and enlarged by a relative 1e-9 for each operator to allow for its rounding."
_NORM_ROUNDING = "Norms are computed in float64, and their rounding is part of them."
_START = "recursion over the graph: at each layer the operator norm times the distance so far, plus the "
_EFFECT = _START + "measured effect of the changed weights on the dense network's activations"
_LOCAL = "; products of two tensors and normalization by what both networks compute for the sample"
_METHODS = {
    LAYERWISE: "operator norms of K - K~: the smallest of bounds (a), (b) and (c) of docs/bounds.md",
    DATA_FREE: "recursion over the graph with operator norms alone, ||x|| bounded along with the distance",
    "end-to-end, measured norms": (
        _START + "operator norm of what was changed times the measured norm of the dense network's activations" + _LOCAL
    ),
    "end-to-end, measured residuals": _EFFECT + _LOCAL,
    "end-to-end, hybrid": _EFFECT + "; the smaller of the l2 and the elementwise form" + _LOCAL,
}


def rounded_up(value: float) -> str:
    """`value` >= 0 rounded up to six digits, as it is printed."""
    up = decimal.Context(prec=6, rounding=decimal.ROUND_CEILING).create_decimal(value)
    return f"{float(up):.6g}"


def method_of(claim: str, *, has_masks: bool = False) -> str:
    """How the bound of a claim is computed, about two files or about two of which one masks positions."""
    return _METHODS[claim] + ("; masked positions as in section 7 of docs/bounds.md" if has_masks else "")


def assumptions_of(claim: str, data_sha256: str, *, radius: str = "", count: int | None = 0) -> tuple[str, ...]:
    """What a claim with a bound rests on."""
    if claim == LAYERWISE:
        return _EXACT, _SIZES, _NORM_ROUNDING
    if claim == DATA_FREE:
        about = f"No image of the data set {data_sha256} has a norm above {radius}."
    else:
        about = f"The samples are the first {count} of the data set {data_sha256}."
    return _EXACT, _SIZES, _ROUNDING, about


def layerwise_statement(layer_count: int) -> str:
    """What is claimed of the layers."""
    return (
        f"For every masked layer ({layer_count} in all) and every input x of the layer, the l2 distance between the "
        "dense and the sparse layer's output is at most difference_norm ||x|| + bias_difference sqrt(output_positions), "
        "with the figures listed for the layer; the largest difference_norm is given as the bound."
    )


def layerwise_detail(layer_count: int, worst: str) -> tuple[str, str, str]:
    """The start, which is always there, and what stands before and after the median ratio on samples."""
    return (
        f"Masked layers: {layer_count}; the largest bound is that of {worst}.",
        " On the samples the bounds are ",
        " times the largest measured gain (median over layers).",
    )


def data_free_statement(radius: str, bound: float) -> str:
    """What is claimed of all inputs up to a norm."""
    return (
        f"For every input whose l2 norm is at most {radius}, the l2 distance between the outputs of the dense and the "
        f"sparse network is at most {rounded_up(bound)}."
    )


def radius_in(statement: str) -> str | None:
    """The norm that such a statement is about, as it is printed; None if the statement has none, or no plain number."""
    found = re.match(r"For every input whose l2 norm is at most ([0-9.e+-]+), the l2 distance", statement)
    return found[1] if found and _is_plain(found[1]) else None


def samples_statement(count: int | None, bound: float) -> str:
    """What is claimed of the samples."""
    return (
        f"For each of the first {count} samples of the data set, the l2 distance between the outputs of the dense and the "
        f"sparse network is at most that sample's own bound; the largest is {rounded_up(bound)}."
    )


def end_to_end_detail(kept: int | None, total: int | None, tightness: float | None) -> str:
    """What a claim is worth, before the remark on the median."""
    if kept:
        return f"It proves for {kept} of {total} samples that masking does not change the predicted class."
    size = "" if tightness is None else f": it is {tightness:.3g} times the largest measured distance"
    return f"Vacuous: true, but it proves of none of the {total} samples that its predicted class stays{size}."


def no_rule(unsupported: Sequence[str]) -> str:
    """Why no end-to-end claim has a bound."""
    names = ", ".join(unsupported)
    return f"The network recursion has no rule for {names}; only the layerwise claim holds for this network."


def printed_in(text: str, before: str, after: str, digits: int) -> float | None:
    """The number between `before` and `after`, if `text` is just that and the number is printed with `digits` digits."""
    middle = text[len(before) : len(text) - len(after)]
    if text != before + middle + after or not re.fullmatch(r"[0-9.e+-]+|inf", middle):
        return None
    try:
        return float(middle) if f"{float(middle):.{digits}g}" == middle else None
    except ValueError:
        return None


def _is_plain(text: str) -> bool:
    try:
        return f"{float(text):.6g}" == text
    except ValueError:
        return False
