"""What a deviation is made of, in lines for a terminal."""

from collections import Counter

from rich.markup import escape

from masksparse_deploy.core.artifacts.attribution import PARTS, Attribution, DeviationParts

__all__ = ["attribution_lines"]


def attribution_lines(found: Attribution) -> list[str]:
    """The parts at the output, and how many layers each part is the largest of."""
    lines = []
    if found.output is not None:
        lines.append(
            f"outputs {_share(found.output.total)} from the dense ones: {_parts(found.output)} "
            f"(l2 of {found.sample_count} samples; steps, in this order)"
        )
    elif found.output_obstacle:
        lines.append(f"what the deviation at the output is made of: not known, {escape(found.output_obstacle)}")
    largest = Counter(max(PARTS, key=lambda part: getattr(layer.parts, part)) for layer in found.layers)
    if largest:
        counts = ", ".join(f"{_name(part)} in {largest[part]}" for part in PARTS if largest[part])
        lines.append(f"largest part of the deviation of {len(found.layers)} changed layers, on their own inputs: {counts}")
    return lines


def _parts(parts: DeviationParts) -> str:
    """What is not zero, in order."""
    together = f" ({_share(parts.sparsity)} together)" if parts.mask and parts.new_values else ""
    values = {part: getattr(parts, part) for part in PARTS}
    words = (
        f"{_name(part)} {_share(value)}{together if part == 'new_values' else ''}" for part, value in values.items() if value
    )
    return ", ".join(words) or "nothing"


def _name(part: str) -> str:
    return part.replace("_", " ")


def _share(value: float) -> str:
    return f"{100 * value:.3g} %"
